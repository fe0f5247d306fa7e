//! Fences: who may import whom, where dangerous things live, how long a file may get.
//!
//! Reads the sources as text, so it holds for code that no feature or target compiles.

use std::fs;
use std::path::{Path, PathBuf};

/// Which modules of the crate a module may name.
const ALLOWED: &[(&str, &[&str])] = &[
    ("api", &[]),
    ("cli", &["api", "config", "disk", "id", "observe", "sys"]),
    ("compile", &["id", "plan"]),
    ("config", &["id", "settings"]),
    ("cri", &["api", "id", "image", "net", "node", "observe", "stream"]),
    ("disk", &["sys"]),
    ("id", &[]),
    ("image", &["api", "disk", "id", "observe", "sys"]),
    ("metrics", &["cri", "id", "net", "node", "observe"]),
    ("net", &["disk", "id", "observe", "settings", "sys"]),
    ("node", &["api", "compile", "disk", "id", "image", "net", "observe", "plan", "runtime", "stream", "wire"]),
    ("observe", &[]),
    ("oci", &["compile", "disk", "id", "plan", "runtime", "sys"]),
    ("plan", &[]),
    ("runtime", &["disk", "id", "plan", "sys"]),
    // Part of the program `aril`, so it names the library from outside.
    ("serve", &[]),
    ("settings", &[]),
    ("shim", &["disk", "id", "observe", "plan", "runtime", "sys", "wire"]),
    ("stream", &["id", "observe"]),
    ("sys", &[]),
    ("wire", &["id", "plan", "sys"]),
];

/// Which paths may name a crate or word; everything else may not.
const FENCES: &[(&str, &[&str])] = &[
    ("tonic", &["src/api.rs", "src/cri", "src/cli", "src/main.rs"]),
    ("oci_spec", &["src/compile", "src/node/spec", "src/runtime", "src/image", "src/oci"]),
    ("caps", &["src/runtime"]),
    ("cgroups_rs", &["src/runtime"]),
    ("rustls", &["src/image/registry"]),
    ("hyper", &["src/image/registry", "src/cri/server", "src/cri/call", "src/metrics", "src/stream"]),
    ("anyhow", &[]),
];

/// Which paths may not name a crate.
const FORBIDDEN: &[(&str, &[&str])] = &[
    ("tokio", &["src/sys", "src/runtime", "src/shim", "src/compile", "src/plan.rs", "src/node/state", "src/node/spec"]),
    ("serde_json", &["src/sys", "src/runtime", "src/shim", "src/bin/aril-shim.rs"]),
];

/// Lines of one file without its tests.
const MAX_LINES: usize = 600;

struct Source {
    /// From the package's root.
    path: String,
    /// Without comments, string literals and inline tests.
    code: String,
    /// Without comments and string literals.
    with_tests: String,
    /// Lines before the inline tests.
    lines: usize,
}

#[test]
fn modules_import_only_what_lies_below_them() {
    let mut wrong = Vec::new();
    for source in sources("src") {
        let Some(module) = module(&source.path) else { continue };
        let (_, may) = ALLOWED
            .iter()
            .find(|(name, _)| *name == module)
            .unwrap_or_else(|| panic!("{}: module {module} is not in the table of layers", source.path));
        for tail in source.code.split("crate::").skip(1) {
            let used = word(tail);
            let is_macro = tail[used.len()..].starts_with('!');
            if used.is_empty() {
                wrong.push(format!("{}: imports several modules of the crate in one line", source.path));
            } else if !is_macro && used != module && !may.contains(&used) {
                wrong.push(format!("{}: {module} names {used}", source.path));
            }
        }
    }
    none(wrong);
}

#[test]
fn crates_stay_behind_their_fences() {
    let mut wrong = Vec::new();
    for source in sources("src") {
        let is_in = |places: &[&str]| places.iter().any(|place| below(&source.path, place));
        let outside = FENCES.iter().filter(|(_, allowed)| !is_in(allowed));
        let inside = FORBIDDEN.iter().filter(|(_, forbidden)| is_in(forbidden));
        let named = outside.chain(inside).filter(|(name, _)| names_crate(&source.code, name));
        wrong.extend(named.map(|(name, _)| format!("{}: names {name}", source.path)));
    }
    none(wrong);
}

/// The C library's numbers are everybody's; its functions and structures are wrapped in `sys`.
#[test]
fn of_libc_only_constants_leave_sys() {
    let mut wrong = Vec::new();
    for source in sources("src").into_iter().filter(|s| !below(&s.path, "src/sys")) {
        for tail in words(&source.code, "libc") {
            let Some(item) = tail.strip_prefix("::").map(word) else { continue };
            let is_constant = item.chars().all(|c| c.is_ascii_uppercase() || c.is_ascii_digit() || c == '_');
            if item.is_empty() || !is_constant {
                wrong.push(format!("{}: uses libc::{item}", source.path));
            }
        }
    }
    none(wrong);
}

#[test]
fn unsafe_code_is_in_sys_and_says_why_it_is_sound() {
    for source in sources("src").into_iter().chain(sources("tests")) {
        if below(&source.path, "src/sys") || source.path == "tests/layering.rs" {
            continue;
        }
        for tail in words(&source.with_tests, "unsafe") {
            let next = tail.trim_start();
            let is_code = ["{", "fn", "impl", "extern", "trait"].iter().any(|start| next.starts_with(start));
            assert!(!is_code, "{}: unsafe code outside src/sys", source.path);
        }
        assert!(!source.with_tests.contains("allow(unsafe_code)") || source.path == "src/lib.rs", "{}", source.path);
    }
}

#[test]
fn nothing_is_left_for_later() {
    for source in sources("src").into_iter().chain(sources("tests")).chain(sources("benches")) {
        if source.path == "tests/layering.rs" {
            continue;
        }
        for left in ["todo!", "unimplemented!", "#[ignore", "dbg!"] {
            assert!(!source.with_tests.contains(left), "{}: {left}", source.path);
        }
        let text = fs::read_to_string(root().join(&source.path)).unwrap();
        for left in ["TODO", "FIXME", "XXX"] {
            let is_comment = |line: &str| line.split("//").skip(1).any(|comment| comment.contains(left));
            assert!(!text.lines().any(is_comment), "{}: a comment with {left}", source.path);
        }
    }
}

#[test]
fn files_are_short_enough_to_read() {
    let long = sources("src").into_iter().filter(|s| s.lines > MAX_LINES);
    none(long.map(|s| format!("{}: {} lines; split it by concern", s.path, s.lines)).collect());
}

#[test]
fn the_readers_own_rules() {
    let code = strip(
        "let a = \"crate::x // no\"; // crate::y\n/* crate::z\n */ let c = '\"'; let d = r#\"crate::w\"#; b'\\'';",
    );
    assert!(!code.contains("crate::"), "{code}");
    assert!(code.contains("let c") && code.contains("let d"), "{code}");
    assert!(names_crate("use libc::x;", "libc") && names_crate("  libc::getpid()", "libc"));
    assert!(!names_crate("use my_libc::x; a.libc", "libc") && !names_crate("sys::libc::x", "libc"));
    assert_eq!(before_tests("a\n#[cfg(test)]\nmod tests {\n}\n"), "a\n");
    assert_eq!(before_tests("a\n#[cfg(test)]\nuse b;\nc\n"), "a\n#[cfg(test)]\nuse b;\nc\n");
}

#[track_caller]
fn none(wrong: Vec<String>) {
    assert!(wrong.is_empty(), "{}", wrong.join("\n"));
}

fn root() -> PathBuf {
    PathBuf::from(env!("CARGO_MANIFEST_DIR"))
}

/// Every Rust file below a directory; `code` is empty for tests in files of their own (`tests.rs`, `tests/…`).
fn sources(directory: &str) -> Vec<Source> {
    let mut list = Vec::new();
    collect(&root().join(directory), &mut list);
    list.sort_by(|a, b| a.path.cmp(&b.path));
    list
}

fn collect(directory: &Path, list: &mut Vec<Source>) {
    let Ok(entries) = fs::read_dir(directory) else { return };
    for entry in entries {
        let path = entry.expect("a directory entry").path();
        if path.is_dir() {
            collect(&path, list);
        } else if path.extension().is_some_and(|e| e == "rs") {
            list.push(source(&path));
        }
    }
}

fn source(path: &Path) -> Source {
    let text = fs::read_to_string(path).expect("a readable source");
    let is_tests = path.with_extension("").iter().any(|part| part == "tests");
    let code = if is_tests { "" } else { before_tests(&text) };
    Source {
        path: path.strip_prefix(root()).expect("below the root").to_string_lossy().into_owned(),
        code: strip(code),
        with_tests: strip(&text),
        lines: code.lines().count(),
    }
}

/// The first module of the crate a file belongs to; `None` for crate roots, which may use them all.
fn module(path: &str) -> Option<&str> {
    let inside = path.strip_prefix("src/")?;
    if matches!(inside, "lib.rs" | "main.rs") || inside.starts_with("bin/") {
        return None;
    }
    Some(inside.split(['/', '.']).next().unwrap_or_default())
}

fn below(path: &str, place: &str) -> bool {
    path == place || path == format!("{place}.rs") || path.starts_with(&format!("{place}/"))
}

fn word(text: &str) -> &str {
    let end = text.find(|c: char| !c.is_alphanumeric() && c != '_').unwrap_or(text.len());
    &text[..end]
}

/// What follows each occurrence of a whole word.
fn words<'a>(text: &'a str, wanted: &str) -> Vec<&'a str> {
    let is_part = |c: char| c.is_alphanumeric() || c == '_';
    let whole = |at: &usize| {
        let before = text[..*at].chars().next_back().is_some_and(is_part);
        let after = text[*at + wanted.len()..].chars().next().is_some_and(is_part);
        !before && !after
    };
    text.match_indices(wanted).map(|(at, _)| at).filter(whole).map(|at| &text[at + wanted.len()..]).collect()
}

/// Whether code names a crate: its word, followed by `::`, and not itself in another path.
fn names_crate(code: &str, name: &str) -> bool {
    words(code, name).iter().any(|tail| {
        let at = code.len() - tail.len() - name.len();
        tail.starts_with("::") && !code[..at].ends_with("::")
    })
}

/// A file up to its inline test module.
fn before_tests(text: &str) -> &str {
    let start = text.match_indices("#[cfg(test)]").map(|(at, _)| at).find(|at| {
        let rest = text[*at..].trim_start_matches("#[cfg(test)]").trim_start();
        rest.starts_with("mod ") || rest.starts_with("pub mod ") || rest.starts_with("#[")
    });
    &text[..start.unwrap_or(text.len())]
}

/// Code without comments and without what stands in quotes.
fn strip(text: &str) -> String {
    let mut out = String::with_capacity(text.len());
    let mut rest = text;
    while let Some(c) = rest.chars().next() {
        let skipped = skip(rest, out.chars().next_back());
        if skipped > 0 {
            out.push(' ');
            rest = &rest[skipped..];
        } else {
            out.push(c);
            rest = &rest[c.len_utf8()..];
        }
    }
    out
}

/// Length of the comment or literal at the start of `rest`; 0 if there is none.
fn skip(rest: &str, before: Option<char>) -> usize {
    let to = |end: Option<usize>, extra: usize| end.map_or(rest.len(), |at| at + extra);
    if rest.starts_with("//") {
        return to(rest.find('\n'), 0);
    }
    if rest.starts_with("/*") {
        return to(rest.find("*/"), 2);
    }
    let in_word = before.is_some_and(|c| c.is_alphanumeric() || c == '_');
    if !in_word && let Some(raw) = rest.strip_prefix('r').filter(|r| r.starts_with(['"', '#'])) {
        let hashes = raw.len() - raw.trim_start_matches('#').len();
        if raw[hashes..].starts_with('"') {
            let end = format!("\"{}", "#".repeat(hashes));
            return to(raw[hashes + 1..].find(&end).map(|at| at + hashes + 2), end.len());
        }
    }
    if rest.starts_with('"') {
        return quoted(rest, '"');
    }
    // A character literal; a lifetime has no closing quote right after it.
    let literal = rest.strip_prefix('\'').map(|r| if r.starts_with('\\') { 2 } else { 1 });
    if let Some(length) = literal
        && rest.chars().skip(1 + length).take(8).take_while(|c| *c != '\n').any(|c| c == '\'')
        && (length == 2 || rest.chars().nth(2) == Some('\''))
    {
        return quoted(rest, '\'');
    }
    0
}

fn quoted(rest: &str, quote: char) -> usize {
    let mut escaped = false;
    for (at, c) in rest.char_indices().skip(1) {
        match c {
            _ if escaped => escaped = false,
            '\\' => escaped = true,
            c if c == quote => return at + 1,
            _ => {}
        }
    }
    rest.len()
}
