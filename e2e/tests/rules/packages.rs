//! Packages and modules: which there are, and which way they depend on each other.

use std::collections::BTreeSet;

use toml::Value;

use crate::checkout::{code, dependencies, files_with, manifest};
use crate::hold;

/// Every package, its directory, and the packages of this workspace that it may depend on.
pub(crate) const PACKAGES: [(&str, &str, &[&str]); 7] = [
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
