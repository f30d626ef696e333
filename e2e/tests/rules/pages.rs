//! The documentation: pages that are found, and that say what the code has.

use std::collections::BTreeSet;
use std::path::Path;

use crate::checkout::{files_with, read, root};
use crate::hold;

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
