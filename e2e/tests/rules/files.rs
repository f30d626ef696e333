//! Source files: unsafe code, names, length, and what does not belong into one.

use std::path::Path;

use crate::checkout::{code, files, files_with, read, text};
use crate::hold;
use crate::packages::PACKAGES;

/// The only files with unsafe code, and the files whose one attribute lets them.
const UNSAFE_CODE: [&str; 2] = ["agent/src/sys/raw.rs", "host/vmm/src/krun.rs"];
const UNSAFE_ALLOWED_BY: [&str; 3] = ["agent/src/sys.rs", "host/vmm/examples/bare.rs", "host/vmm/src/main.rs"];
/// The crate roots above those files; all others forbid.
const UNSAFE_DENIED_IN: [&str; 3] = ["agent/src/lib.rs", "host/vmm/examples/bare.rs", "host/vmm/src/main.rs"];

/// Names that say nothing about what is in a file.
const BANNED_NAMES: [&str; 6] = ["mod", "utils", "util", "common", "helpers", "misc"];

const LINES_MAX: usize = 600;

/// Hosts that a file may name: this machine itself, and some that readers go to. Everything else that a build needs comes from what the machine is set up with.
const HOSTS: [&str; 5] = ["127.0.0.1", "github.com", "docs.rs", "www.apache.org", "crates.io"];
/// Reserved for examples, and made-up authorities of in-process connections.
const HOSTS_OF_NOBODY: [&str; 5] = [".example", "example.com", "example.org", ".invalid", "gateway.openshell"];

#[test]
fn unsafe_code_stands_in_the_files_of_the_list() {
    // Attributes and keywords, written so that this file does not match itself.
    let allows = ["allow(unsafe", "_code"].concat();
    let keywords = ["{", "fn ", "impl ", "trait ", "extern "].map(|next| format!("{}safe {next}", "un"));
    let (mut with_code, mut with_attribute) = (vec![], vec![]);
    for file in files_with(".rs") {
        let code = code(&file);
        let has = |needle: &str| code.iter().any(|(_, line)| line.contains(needle));
        if keywords.iter().any(|keyword| has(keyword)) {
            with_code.push(file.clone());
        }
        if has(&allows) {
            with_attribute.push(file);
        }
    }
    assert_eq!(with_code, UNSAFE_CODE, "find a safe way, or argue for a change of UNSAFE_CODE");
    assert_eq!(with_attribute, UNSAFE_ALLOWED_BY, "the attribute stands on the one module that needs it");
}

#[test]
fn every_crate_says_what_it_thinks_of_unsafe_code() {
    let mut violations = vec![];
    for file in files_with(".rs").into_iter().filter(|file| is_crate_root(file)) {
        let denied = UNSAFE_DENIED_IN.contains(&file.as_str());
        let attribute = if denied { "#![deny(unsafe_code)]" } else { "#![forbid(unsafe_code)]" };
        if !read(&file).lines().any(|line| line == attribute) {
            violations.push(format!("{file}: write {attribute} at its top"));
        }
    }
    hold("a crate root says whether unsafe code may stand below it:", violations);
}

fn is_crate_root(file: &str) -> bool {
    let mut directories = PACKAGES.map(|(_, directory, _)| directory);
    // The innermost package first: host/vmm lies in host.
    directories.sort_by_key(|directory| std::cmp::Reverse(directory.len()));
    let inside = |directory: &str| file.strip_prefix(directory).and_then(|rest| rest.strip_prefix('/'));
    let Some(path) = directories.iter().find_map(|directory| inside(directory)) else { return false };
    matches!(
        path.split('/').collect::<Vec<_>>()[..],
        ["build.rs"] | ["src", "lib.rs" | "main.rs"] | ["src", "bin", _] | ["tests" | "benches" | "examples", _]
    )
}

#[test]
fn files_are_named_after_what_they_hold() {
    let mut violations = vec![];
    for file in files() {
        let parts = Path::new(&file).iter().filter_map(|part| part.to_str());
        let stems = parts.map(|part| part.split('.').next().unwrap_or_default());
        if stems.clone().any(|stem| BANNED_NAMES.contains(&stem)) {
            violations.push(file.clone());
        }
        if file.ends_with(".rs") {
            let inline = code(&file).into_iter().filter(|(_, line)| {
                let name = line.trim_start().trim_start_matches("pub ").strip_prefix("mod ");
                name.is_some_and(|name| BANNED_NAMES.contains(&name.trim_end_matches([';', '{', ' '])))
            });
            violations.extend(inline.map(|(number, line)| format!("{file}:{number}: {}", line.trim())));
        }
    }
    hold("name a file and a module after the one noun that it holds (`foo.rs` beside `foo/`):", violations);
}

#[test]
fn files_can_be_read_in_one_sitting() {
    let not_ours = ["Cargo.lock", "LICENSE"];
    let lengths = files().into_iter().filter(|file| !not_ours.contains(&file.as_str())).filter_map(|file| {
        let lines = text(&file)?.lines().count();
        (lines > LINES_MAX).then(|| format!("{file}: {lines} lines"))
    });
    hold("which two things are in it? Split it:", lengths.collect());
}

#[test]
fn nothing_is_left_to_do() {
    let needles = ["todo", "unimplemented", "dbg"].map(|name| format!("{name}!("));
    let mut violations = vec![];
    for file in files_with(".rs") {
        for (number, line) in code(&file) {
            violations.extend(needles.iter().filter(|n| line.contains(*n)).map(|n| format!("{file}:{number}: {n}…)")));
        }
    }
    hold("finish it, or leave it out:", violations);
}

#[test]
fn no_file_knows_the_machine_it_was_written_on() {
    // Directories of people and of build machines; split, so that this file does not match itself.
    let machine =
        [["/wo", "rk/"], ["/ro", "ot/"], ["/tmp", "/wt-"], [".cargo/", "registry"]].map(|parts| parts.concat());
    let mut violations = vec![];
    for file in files() {
        let Some(text) = text(&file) else { continue };
        for (number, line) in text.lines().enumerate() {
            let number = number + 1;
            let named = |path: &&String| {
                let begins = |at: usize| !line[..at].ends_with(|c: char| c.is_alphanumeric() || "._-/$}".contains(c));
                line.match_indices(path.as_str()).any(|(at, _)| begins(at))
            };
            violations.extend(machine.iter().filter(named).map(|path| format!("{file}:{number}: {path}")));
            let foreign = url_hosts(line).into_iter().filter(|host| {
                !HOSTS.contains(&host.as_str()) && !HOSTS_OF_NOBODY.iter().any(|nobody| host.ends_with(nobody))
            });
            violations.extend(foreign.map(|host| format!("{file}:{number}: {host}")));
        }
    }
    hold("write paths relative to the checkout, and name no host but those of HOSTS:", violations);
}

/// The hosts of all addresses with a scheme of the web; a name without a dot is nobody's host.
fn url_hosts(line: &str) -> Vec<String> {
    let rests = ["http://", "https://"].into_iter().flat_map(|scheme| line.split(scheme).skip(1));
    let hosts = rests.map(|rest| {
        rest.chars().take_while(|c| c.is_ascii_alphanumeric() || matches!(c, '.' | '-' | '@')).collect::<String>()
    });
    hosts.filter(|host| host.contains('.')).map(|host| host.trim_end_matches('.').to_owned()).collect()
}
