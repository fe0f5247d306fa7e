//! Blobs as they come: by pieces, resumed where a transfer broke off, never more or fewer bytes than promised.

use std::ops::Range;
use std::sync::Arc;
use std::sync::atomic::Ordering;
use std::time::{Duration, Instant};

use bytes::Bytes;
use http::StatusCode;
use http::header::{self, HeaderMap, HeaderName, HeaderValue};
use http_body_util::BodyExt;
use hyper::body::Incoming;

use crate::id::Digest;
use crate::image::registry::error::{RegistryError, RegistryErrorKind as Kind, clean};
use crate::image::registry::peer::{Answer, content_length, interrupted};
use crate::image::registry::plan::Plan;
use crate::image::registry::repository::{Endpoint, Repository};

/// Bytes that must come in each stretch of the no-progress deadline: a trickle is a stall too.
const TRICKLE: u64 = 16 << 10;

/// A blob, or a part of one, on its way.
///
/// Sends nothing before [`open`](Self::open) or [`chunk`](Self::chunk). What breaks off or stalls is asked for again from
/// where it stopped, at the same host or the next. Dropping it ends the transfer. The bytes are not hashed: whoever asks
/// for a whole blob compares its digest.
#[derive(Debug)]
pub struct Blob {
    repository: Repository,
    digest: Digest,
    /// Of the whole blob.
    size: u64,
    start: u64,
    end: u64,
    position: u64,
    ranges: bool,
    /// A server without ranges may send what comes before the part.
    passes_over: bool,
    plan: Option<Plan>,
    transfer: Option<Transfer>,
}

/// One answer that is being read.
#[derive(Debug)]
struct Transfer {
    body: Incoming,
    from: String,
    /// Bytes before our position that a server without ranges sends again.
    skip: u64,
    /// What came of the part that was asked for.
    received: u64,
    /// Since when less than [`TRICKLE`] came; the time in which nobody reads does not count.
    waited: Duration,
    came: u64,
}

impl Blob {
    pub(super) fn new(repository: Repository, digest: Digest, size: u64, range: Option<Range<u64>>) -> Self {
        let range = range.unwrap_or(0..size);
        let end = range.end.min(size);
        let start = range.start.min(end);
        let (position, ranges, passes_over) = (start, false, false);
        Self { repository, digest, size, start, end, position, ranges, passes_over, plan: None, transfer: None }
    }

    /// Has a server without ranges send the blob from its beginning, and passes over what comes before the part.
    #[must_use]
    pub fn passing_over(mut self) -> Self {
        self.passes_over = true;
        self
    }

    /// Sends the request and waits for the beginning of an answer, if none is being read.
    ///
    /// # Errors
    /// As [`Self::chunk`].
    pub async fn open(&mut self) -> Result<(), RegistryError> {
        while self.transfer.is_none() && self.position < self.end {
            let mut plan = match self.plan.take() {
                Some(plan) => plan,
                None => self.repository.blob_plan(&self.digest)?,
            };
            let endpoint = plan.endpoint();
            match self.request(&endpoint).await {
                Ok(transfer) => self.transfer = Some(transfer),
                Err(e) if e.kind() == Kind::NoRanges => return Err(e),
                Err(e) => plan.failed(e).await?,
            }
            self.plan = Some(plan);
        }
        Ok(())
    }

    /// Whether the server has ranges, so that parts can be fetched beside each other. Known once it has answered.
    #[must_use]
    pub fn ranges(&self) -> bool {
        self.ranges
    }

    /// Offset in the blob of the next byte.
    #[must_use]
    pub fn position(&self) -> u64 {
        self.position
    }

    /// Makes this the part that ends at `end`, if it ended later; what was given out stays given out.
    pub fn stop_at(&mut self, end: u64) {
        self.end = end.clamp(self.position, self.end);
    }

    /// The next bytes, at most 256 KiB; `None` when all were given out.
    ///
    /// # Errors
    /// [`RegistryError`], when no host gave more within the bounds on attempts; of kind `NoRanges` when a part that does
    /// not begin the blob is wanted from a server that has no ranges, unless it is [`Self::passing_over`]; of kind `Mismatch` when the server's blob has
    /// another size.
    pub async fn chunk(&mut self) -> Result<Option<Bytes>, RegistryError> {
        loop {
            if self.position >= self.end {
                self.transfer = None;
                return Ok(None);
            }
            self.open().await?;
            let Some(transfer) = &mut self.transfer else { continue };
            match transfer.next(self.repository.settings().progress_timeout, self.position, self.size).await {
                Ok(mut data) => {
                    let wanted = usize::try_from(self.end - self.position).unwrap_or(usize::MAX);
                    data.truncate(wanted);
                    self.position += data.len() as u64;
                    if !data.is_empty() {
                        return Ok(Some(data));
                    }
                }
                Err(reason) => self.broke_off(reason).await?,
            }
        }
    }

    async fn broke_off(&mut self, reason: String) -> Result<(), RegistryError> {
        let Some(transfer) = self.transfer.take() else { return Ok(()) };
        let text = format!("{}: {} {reason}", transfer.from, self.repository.blob_name(&self.digest));
        let error = RegistryError::new(Kind::Unavailable, text);
        match &mut self.plan {
            Some(plan) => {
                plan.progress(transfer.received);
                plan.failed(error).await
            }
            None => Err(error),
        }
    }

    async fn request(&mut self, endpoint: &Arc<Endpoint>) -> Result<Transfer, RegistryError> {
        let part = self.position > 0 || self.end < self.size;
        let mut headers: Vec<(HeaderName, HeaderValue)> = Vec::new();
        if part {
            let value = format!("bytes={}-{}", self.position, self.end - 1);
            headers.extend(HeaderValue::try_from(value).ok().map(|value| (header::RANGE, value)));
        }
        let answer = self.repository.request_blob(endpoint, &self.digest, &headers).await?;
        let what = self.repository.blob_name(&self.digest);
        let odd = |text: String| Err(RegistryError::new(Kind::Protocol, format!("{} {text}", answer.from)));
        let answered = answer.response.headers();
        if let Some(encoding) = answered.get(header::CONTENT_ENCODING).filter(|e| *e != "identity") {
            let name = clean(&String::from_utf8_lossy(encoding.as_bytes()));
            return odd(format!("sent {what} in the encoding {name:?}, which was not asked for"));
        }
        let skip = match answer.response.status() {
            StatusCode::OK => {
                self.check_size(&answer, &what, content_length(answered))?;
                if part {
                    // Whatever it says of itself.
                    endpoint.no_ranges.store(true, Ordering::Relaxed);
                }
                self.ranges = answered.get(header::ACCEPT_RANGES).is_some_and(|v| v == "bytes")
                    && !endpoint.no_ranges.load(Ordering::Relaxed);
                if self.position > 0 && self.position == self.start && !self.passes_over {
                    let text = format!("{} has no ranges, so {what} cannot be fetched in parts", answer.from);
                    return Err(RegistryError::new(Kind::NoRanges, text));
                }
                self.position
            }
            StatusCode::PARTIAL_CONTENT if part => {
                let Some((first, last, total)) = content_range(answered) else {
                    return odd(format!("sent a part of {what} without saying which"));
                };
                if let Some(total) = total {
                    self.check_size(&answer, &what, Some(total))?;
                }
                if first != self.position || last < first {
                    return odd(format!("sent the part from byte {first} of {what}, not from {}", self.position));
                }
                self.ranges = true;
                0
            }
            StatusCode::RANGE_NOT_SATISFIABLE => {
                let text = format!("{} has fewer than {} bytes of {what}", answer.from, self.end);
                return Err(RegistryError::new(Kind::Mismatch, text));
            }
            _ => return Err(endpoint.peer.refusal(answer, &what).await),
        };
        self.repository.delivers(endpoint, &self.digest);
        let Answer { response, from, .. } = answer;
        let body = response.into_body();
        Ok(Transfer { body, from, skip, received: 0, waited: Duration::ZERO, came: 0 })
    }

    fn check_size(&self, answer: &Answer, what: &str, actual: Option<u64>) -> Result<(), RegistryError> {
        match actual {
            Some(actual) if actual != self.size => {
                let text =
                    format!("{} has {actual} bytes as {what}, not {}: it is damaged or forged", answer.from, self.size);
                Err(RegistryError::new(Kind::Mismatch, text))
            }
            _ => Ok(()),
        }
    }
}

impl Transfer {
    /// The next bytes of the part that was asked for; none if all of them were to be skipped. The error goes on after
    /// the blob's name.
    async fn next(&mut self, patience: Duration, position: u64, size: u64) -> Result<Bytes, String> {
        let left = patience.saturating_sub(self.waited);
        let began = Instant::now();
        let frame = tokio::time::timeout(left, self.body.frame()).await;
        self.waited += began.elapsed();
        let stalled = || format!("stalled at byte {position} of {size} for {} s", patience.as_secs_f32());
        let frame = match frame {
            Err(_) => return Err(stalled()),
            Ok(None) => return Err(format!("ended after {position} of {size} bytes")),
            Ok(Some(Err(e))) => return Err(interrupted("it", "it", &e).to_string()),
            Ok(Some(Ok(frame))) => frame,
        };
        let Ok(mut data) = frame.into_data() else { return Ok(Bytes::new()) };
        self.came += data.len() as u64;
        if self.came >= TRICKLE {
            (self.came, self.waited) = (0, Duration::ZERO);
        }
        let skipped = usize::try_from(self.skip).unwrap_or(usize::MAX).min(data.len());
        let data = data.split_off(skipped);
        self.skip -= skipped as u64;
        self.received += data.len() as u64;
        Ok(data)
    }
}

/// First and last byte of a part, and the size of the whole if it is said.
fn content_range(headers: &HeaderMap) -> Option<(u64, u64, Option<u64>)> {
    let text = headers.get(header::CONTENT_RANGE)?.to_str().ok()?.strip_prefix("bytes ")?;
    let (part, total) = text.split_once('/')?;
    let (first, last) = part.split_once('-')?;
    let total = if total == "*" { None } else { Some(total.parse().ok()?) };
    Some((first.parse().ok()?, last.parse().ok()?, total))
}
