//! What the kernel tells of changes that others make: of tables of nftables, and of the bridge itself.
//!
//! Costs nothing while nobody changes anything: what is of no interest never wakes the daemon, the driver's own changes
//! of tables neither.

use std::io;
use std::os::fd::{AsFd, OwnedFd};

use netlink_sys::{Socket, SocketAddr, protocols};

use crate::sys::net::{Test, take_only};

/// `RTNLGRP_LINK`, `RTNLGRP_IPV4_IFADDR`, `RTNLGRP_IPV6_IFADDR`.
const ROUTE_GROUPS: [u32; 3] = [1, 5, 9];
/// `NFNLGRP_NFTABLES`.
const TABLES_GROUP: u32 = 7;
/// In `struct nlmsghdr`: what kind of message, and who caused it.
const KIND: u32 = 4;
const CAUSE: u32 = 12;
/// The index of the device, behind that: in `struct ifinfomsg` as in `struct ifaddrmsg`.
const INDEX: u32 = 20;

/// See the module.
pub struct Watch {
    tables: Socket,
    devices: Socket,
    /// The bridge that is looked at.
    index: u32,
}

impl std::fmt::Debug for Watch {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.debug_struct("Watch").field("index", &self.index).finish_non_exhaustive()
    }
}

impl Watch {
    /// For the calling thread's network namespace. `own` is the number of the socket the driver changes tables by.
    ///
    /// # Errors
    /// As netlink(7).
    pub fn open(own: u32) -> io::Result<Self> {
        let tables = open(protocols::NETLINK_NETFILTER)?;
        let changed = u16::try_from(libc::NFNL_SUBSYS_NFTABLES << 8 | libc::NFT_MSG_NEWGEN).unwrap_or_default();
        take_only(
            tables.as_fd(),
            &[Test::Short { at: KIND, is: changed }, Test::Long { at: CAUSE, is: own, equal: false }],
        )?;
        tables.add_membership(TABLES_GROUP)?;
        let devices = open(protocols::NETLINK_ROUTE)?;
        // No device has this index.
        take_only(devices.as_fd(), &[Test::Long { at: INDEX, is: 0, equal: true }])?;
        ROUTE_GROUPS.into_iter().try_for_each(|group| devices.add_membership(group))?;
        Ok(Self { tables, devices, index: 0 })
    }

    /// From now on this device is the bridge.
    pub fn look_at(&mut self, index: u32) {
        if self.index == index {
            return;
        }
        match take_only(self.devices.as_fd(), &[Test::Long { at: INDEX, is: index, equal: true }]) {
            Ok(()) => self.index = index,
            Err(e) => tracing::warn!(error = %e, "changes of the bridge are not seen at once"),
        }
    }

    /// Becomes readable when something has happened, each of them.
    ///
    /// # Errors
    /// As dup(2).
    pub fn descriptors(&self) -> io::Result<Vec<OwnedFd>> {
        [&self.tables, &self.devices].into_iter().map(|socket| socket.as_fd().try_clone_to_owned()).collect()
    }

    /// Forgets what was told so far.
    pub fn drain(&self) {
        let mut buffer = Vec::with_capacity(4096);
        for socket in [&self.tables, &self.devices] {
            loop {
                buffer.clear();
                match socket.recv(&mut buffer, 0) {
                    Ok(_) => {}
                    // More than the socket could hold: something has happened, which is all that counts.
                    Err(e) if e.raw_os_error() == Some(libc::ENOBUFS) => {}
                    Err(_) => break,
                }
            }
        }
    }
}

fn open(protocol: isize) -> io::Result<Socket> {
    let mut socket = Socket::new(protocol)?;
    socket.set_non_blocking(true)?;
    socket.bind(&SocketAddr::new(0, 0))?;
    Ok(socket)
}
