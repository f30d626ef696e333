//! Workspace rules: what the compiler does not check and a reviewer forgets. Each test is one rule, and its message
//! says what to do. They read files only.

#![forbid(unsafe_code)]

use std::collections::BTreeSet;
use std::fs;
use std::path::{Path, PathBuf};
use std::process::Command;

use toml::{Table, Value};

/// Every package, its directory, and the packages of this workspace that it may depend on.
const PACKAGES: [(&str, &str, &[&str]); 7] = [
    ("proto", "proto", &[]),
    ("agent", "agent", &["proto"]),
    ("host", "host", &["proto"]),
    ("vmm", "host/vmm", &["proto"]),
    ("e2e", "e2e", &["proto"]),
    ("guest-probe", "e2e/guest-probe", &["proto"]),
    // A guest without a VM: it holds its session with the agent's own code.
    ("fake-vmm", "e2e/fake-vmm", &["agent", "proto"]),
];

/// Only this package runs VMs.
const VMM: &str = "vmm";

/// Modules of `host` and what each may name, from the top down: a row names only modules of rows below it.
/// `gateway` composes everything, and only it and the programs name drivers and stores.
const MODULES: [(&str, &[&str]); 18] = [
    (
        "gateway",
        &[
            "command",
            "config",
            "api",
            "driver",
            "store",
            "session",
            "sandbox",
            "rotation",
            "identity",
            "secrets",
            "registration",
            "faults",
            "atomic_file",
        ],
    ),
    ("registration", &["identity", "atomic_file"]),
    ("command", &["config", "status", "atomic_file"]),
    ("config", &["quantity", "tmpfs"]),
    ("api", &["session", "sandbox", "rotation", "identity", "secrets", "status", "faults"]),
    ("driver", &["sandbox", "rotation", "hex"]),
    ("store", &["sandbox", "rotation"]),
    ("session", &["sandbox", "rotation", "identity", "status", "faults"]),
    ("sandbox", &["rotation", "identity", "faults", "quantity", "hex"]),
    ("rotation", &["identity", "faults", "tmpfs"]),
    ("identity", &["faults", "hex"]),
    ("secrets", &["atomic_file"]),
    ("status", &[]),
    ("faults", &[]),
    ("hex", &[]),
    ("quantity", &[]),
    ("tmpfs", &[]),
    ("atomic_file", &[]),
];

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

fn root() -> PathBuf {
    let here = std::env::current_dir().expect("a current directory");
    let found = here.ancestors().find(|directory| directory.join("Cargo.lock").is_file());
    found.expect("run in the checkout").to_owned()
}

/// Every file that is or will be committed, relative to the root.
fn files() -> Vec<String> {
    let listed = Command::new("git")
        .args(["ls-files", "-z", "--cached", "--others", "--exclude-standard"])
        .current_dir(root())
        .output()
        .expect("run git: the rules are about the files of a checkout");
    assert!(listed.status.success(), "git ls-files failed: {}", String::from_utf8_lossy(&listed.stderr));
    let names = String::from_utf8(listed.stdout).expect("file names are UTF-8");
    let names: BTreeSet<String> = names.split('\0').filter(|name| !name.is_empty()).map(str::to_owned).collect();
    assert!(names.contains("Cargo.toml"), "git lists no Cargo.toml");
    // A file that was deleted and not yet committed is still listed.
    names.into_iter().filter(|name| root().join(name).is_file()).collect()
}

fn files_with(extension: &str) -> Vec<String> {
    files().into_iter().filter(|name| name.ends_with(extension)).collect()
}

/// The text of a file; nothing where it is not text.
fn text(file: &str) -> Option<String> {
    String::from_utf8(fs::read(root().join(file)).unwrap_or_else(|error| panic!("failed to read {file}: {error}"))).ok()
}

fn read(file: &str) -> String {
    text(file).unwrap_or_else(|| panic!("{file} is not UTF-8"))
}

/// The lines of a Rust file without comments, numbered from 1.
fn code(file: &str) -> Vec<(usize, String)> {
    let text = read(file);
    let lines = text.lines().enumerate().map(|(number, line)| {
        let line = if line.trim_start().starts_with("//") { "" } else { line };
        (number + 1, line.split(" // ").next().unwrap_or_default().to_owned())
    });
    lines.collect()
}

fn manifest(directory: &str) -> Table {
    let file = if directory.is_empty() { "Cargo.toml".to_owned() } else { format!("{directory}/Cargo.toml") };
    read(&file).parse().unwrap_or_else(|error| panic!("{file}: {error}"))
}

/// Dependencies of every kind: `(kind, name, how)`.
fn dependencies(manifest: &Table) -> Vec<(&'static str, String, Value)> {
    let mut tables = vec![manifest];
    if let Some(Value::Table(targets)) = manifest.get("target") {
        tables.extend(targets.values().filter_map(Value::as_table));
    }
    let kinds = ["dependencies", "dev-dependencies", "build-dependencies"];
    let pairs = tables.into_iter().flat_map(|table| kinds.map(|kind| (kind, table.get(kind))));
    let entries = pairs.filter_map(|(kind, value)| Some((kind, value?.as_table()?)));
    entries
        .flat_map(|(kind, entries)| entries.iter().map(move |(name, how)| (kind, name.clone(), how.clone())))
        .collect()
}

/// Fails with all violations at once, and with what to do about them.
fn hold(rule: &str, violations: Vec<String>) {
    assert!(violations.is_empty(), "{rule}\n  {}\n", violations.join("\n  "));
}

#[test]
fn the_workspace_has_exactly_these_packages() {
    let members = manifest("")["workspace"]["members"].clone();
    let members: Vec<&str> = members.as_array().expect("a list").iter().filter_map(Value::as_str).collect();
    let directories = PACKAGES.map(|(_, directory, _)| directory);
    assert_eq!(members, directories, "give a new package its row in PACKAGES, with what it may depend on");
}

#[test]
fn packages_depend_in_one_direction() {
    let own = PACKAGES.map(|(name, ..)| name);
    let mut violations = vec![];
    for (name, directory, allowed) in PACKAGES {
        for (kind, dependency, _) in dependencies(&manifest(directory)) {
            if own.contains(&dependency.as_str()) && !allowed.contains(&dependency.as_str()) {
                violations.push(format!("{name} has {dependency} in [{kind}]"));
            }
            if dependency.contains("krun") && name != VMM {
                violations.push(format!("{name} has {dependency} in [{kind}]: only {VMM} runs VMs"));
            }
        }
    }
    hold("what two programs must agree on belongs into `proto`; nothing else is shared:", violations);
}

#[test]
fn packages_share_versions_lints_and_are_not_published() {
    let workspace = manifest("");
    let package = &workspace["workspace"]["package"];
    assert_eq!(package.get("publish"), Some(&Value::Boolean(false)), "nothing of this workspace goes to a registry");
    let mut violations = vec![];
    for (name, directory, _) in PACKAGES {
        let manifest = manifest(directory);
        let inherits = |value: Option<&Value>| value.and_then(|v| v.get("workspace")) == Some(&Value::Boolean(true));
        for key in ["version", "edition", "rust-version", "license", "publish"] {
            if !inherits(manifest["package"].get(key)) {
                violations.push(format!("{name}: write `{key}.workspace = true` in [package]"));
            }
        }
        if manifest.get("lints").and_then(|lints| lints.get("workspace")) != Some(&Value::Boolean(true)) {
            violations.push(format!("{name}: write `workspace = true` in [lints]"));
        }
        for (kind, dependency, how) in dependencies(&manifest) {
            if !inherits(Some(&how)) {
                violations.push(format!("{name}: put {dependency} of [{kind}] into [workspace.dependencies]"));
            }
        }
    }
    hold("what all packages have stands once, in the workspace's Cargo.toml:", violations);
}

#[test]
fn the_module_table_points_one_way_and_is_complete() {
    for (row, (name, allowed)) in MODULES.iter().enumerate() {
        let below: Vec<&str> = MODULES[row + 1..].iter().map(|(name, _)| *name).collect();
        for used in *allowed {
            assert!(below.contains(used), "MODULES: {name} may use {used}, which does not stand below it");
        }
    }
    let known = MODULES.map(|(name, _)| name);
    let unknown = files_with(".rs")
        .into_iter()
        .filter_map(|file| host_module(&file))
        .filter(|(module, _)| !known.contains(&module.as_str()));
    hold("give a new module of host its row in MODULES:", unknown.map(|(module, _)| module).collect());
}

#[test]
fn modules_of_host_are_used_from_above_only() {
    let mut violations = vec![];
    for file in files_with(".rs") {
        let Some((module, depth)) = host_module(&file) else { continue };
        let Some((_, allowed)) = MODULES.iter().find(|(name, _)| *name == module) else { continue };
        let code: String = code(&file).into_iter().map(|(_, line)| line + "\n").collect();
        for used in uses(&code, depth) {
            let known = MODULES.iter().any(|(name, _)| *name == used);
            if known && used != module && !allowed.contains(&used.as_str()) {
                violations.push(format!("{file} uses crate::{used}"));
            }
        }
    }
    let rule = "declare a trait where it is needed and implement it above, or move what is shared further down; \
                drivers and stores are named by gateway.rs alone:";
    hold(rule, violations);
}

/// The top module of a source file of host, and how deep in the module tree the file is. `lib.rs` only lists them; the
/// programs are crates of their own and may name everything.
fn host_module(file: &str) -> Option<(String, usize)> {
    let path = file.strip_prefix("host/src/")?.strip_suffix(".rs")?;
    let parts: Vec<&str> = path.split('/').collect();
    (!["bin", "lib"].contains(&parts[0])).then(|| (parts[0].to_owned(), parts.len()))
}

/// The top modules that a text names: after `crate::`, in the braces of `crate::{…}`, and after enough `super::`.
fn uses(code: &str, depth: usize) -> BTreeSet<String> {
    let mut found = BTreeSet::new();
    for (at, _) in code.match_indices("crate::") {
        if !code[..at].ends_with(|c: char| c.is_alphanumeric() || c == '_') {
            found.extend(heads(&code[at + "crate::".len()..]));
        }
    }
    let climb = "super::".repeat(depth);
    for (at, _) in code.match_indices(&climb) {
        found.extend(heads(code[at + climb.len()..].trim_start_matches("super::")));
    }
    found
}

/// `a::b` is a; `{a::{b, c}, d}` is a and d.
fn heads(path: &str) -> Vec<String> {
    let name = |text: &str| text.chars().take_while(|c| c.is_alphanumeric() || *c == '_').collect::<String>();
    let Some(group) = path.strip_prefix('{') else { return vec![name(path)] };
    let (mut depth, mut begin, mut heads) = (0, 0, vec![]);
    for (at, c) in group.char_indices() {
        match c {
            '{' => depth += 1,
            '}' if depth > 0 => depth -= 1,
            ',' | '}' if depth == 0 => {
                heads.push(name(group[begin..at].trim_start()));
                begin = at + 1;
                if c == '}' {
                    break;
                }
            }
            _ => {}
        }
    }
    heads
}

#[test]
fn paths_are_found_in_every_way_of_writing_them() {
    let found = |code, depth| uses(code, depth).into_iter().collect::<Vec<_>>();
    assert_eq!(found("use crate::api::guard::{A, B};", 2), ["api"]);
    assert_eq!(
        found("use crate::{\n    driver::vm::{keeper::Keeper, places},\n    sandbox::task,\n};", 2),
        ["", "driver", "sandbox"]
    );
    assert_eq!(found("pub(crate) fn f(x: crate::store::lock::StateLock) {}", 1), ["store"]);
    assert_eq!(found("use super::super::api::guard;", 2), ["api"]);
    assert_eq!(found("use super::super::keys; mycrate::x", 3), [""; 0]);
}

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

/// The targets of the links of a page that lead to files, relative to the root.
fn links(page: &str) -> Vec<String> {
    let text = read(page);
    let targets = text.split("](").skip(1).filter_map(|rest| rest.split(')').next());
    let local = targets.map(|target| target.split('#').next().unwrap_or_default());
    let local = local.filter(|target| !target.is_empty() && !target.contains("://"));
    let directory = Path::new(page).parent().unwrap_or(Path::new(""));
    local.map(|target| normal(&directory.join(target))).collect()
}

/// Without `.` and `..`.
fn normal(path: &Path) -> String {
    let mut parts: Vec<&str> = vec![];
    for part in path.iter().filter_map(|part| part.to_str()) {
        match part {
            "." => {}
            ".." => drop(parts.pop()),
            part => parts.push(part),
        }
    }
    parts.join("/")
}

#[test]
fn every_page_is_linked_from_an_index() {
    let indexes = |names: &[&str]| {
        let there = names.iter().filter(|name| root().join(name).is_file());
        there.flat_map(|name| links(name)).collect::<BTreeSet<_>>()
    };
    let decisions = indexes(&["docs/decisions/README.md"]);
    let pages = indexes(&["README.md", "docs/README.md"]);
    let mut violations = vec![];
    for page in files_with(".md").into_iter().filter(|page| page.starts_with("docs/") && page != "docs/README.md") {
        let of_decisions = page.starts_with("docs/decisions/") && page != "docs/decisions/README.md";
        let (linked, index) = if of_decisions {
            (&decisions, "docs/decisions/README.md")
        } else {
            (&pages, "README.md or docs/README.md")
        };
        if !linked.contains(&page) {
            violations.push(format!("{page}: link it from {index}"));
        }
    }
    hold("a page that nothing leads to is not read:", violations);
}

#[test]
fn every_link_leads_somewhere() {
    let dead = files_with(".md").into_iter().flat_map(|page| {
        let dead = links(&page).into_iter().filter(|target| !root().join(target).exists());
        dead.map(|target| format!("{page}: {target}")).collect::<Vec<_>>()
    });
    hold("correct the link, or write the page:", dead.collect());
}

#[test]
fn the_state_diagram_of_the_docs_is_that_of_the_code() {
    let source = read("host/src/sandbox/phase.rs");
    let diagram =
        source.lines().skip_while(|line| *line != "//! ```text").skip(1).take_while(|line| *line != "//! ```");
    let diagram: String =
        diagram.map(|line| line.trim_start_matches("//!").trim_start_matches(' ').to_owned() + "\n").collect();
    let page: String = read("docs/lifecycle.md").lines().map(|line| line.trim_start().to_owned() + "\n").collect();
    assert!(diagram.contains("Provisioning"), "host/src/sandbox/phase.rs opens with its diagram");
    assert!(page.contains(&diagram), "copy the diagram of host/src/sandbox/phase.rs into docs/lifecycle.md");
}

/// The pages name the code that they describe; a name in backquotes that looks like a source path is one.
#[test]
fn every_source_file_that_a_page_names_exists() {
    let mut violations = vec![];
    for page in files_with(".md") {
        for word in read(&page).split('`').skip(1).step_by(2) {
            let first = word.split('/').next().unwrap_or_default();
            let is_source = word.ends_with(".rs") || word.ends_with(".proto");
            let is_path = ["agent", "host", "proto", "e2e", "guest-image"].contains(&first) && word.contains('/');
            if is_source && is_path && !root().join(word).is_file() {
                violations.push(format!("{page}: {word}"));
            }
        }
    }
    hold("a page promises what the code no longer has:", violations);
}
