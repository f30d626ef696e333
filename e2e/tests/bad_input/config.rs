//! Mistakes in the configuration.

use std::fs;

use crate::bench::{Bench, Ended};

const TTL: &str = "OPENSHELL_GATEWAY_TOKEN_TTL";

/// Refused before anything was made.
fn mistaken(bench: &Bench, ended: &Ended, words: &[&str]) {
    assert_eq!(ended.code, Some(2), "{ended:?}");
    for word in words {
        assert!(ended.stderr.contains(word), "`{word}` is not in:\n{}", ended.stderr);
    }
    assert!(ended.stderr.starts_with("error: the configuration has "), "{ended:?}");
    assert!(!bench.state().exists() && !bench.runtime().exists(), "something was made");
}

#[test]
fn all_mistakes_of_a_file_are_reported_at_once_with_their_lines() {
    let bench = Bench::new().with(TTL, None);
    let file = bench.path("config/openshell/gateway.toml");
    fs::create_dir_all(file.parent().expect("a parent")).expect("make a directory");
    let text = "[openshell.gateway]\n\
                token_ttl = \"never\"\n\
                agent_bn = \"/agent\"\n\
                [openshell.drivers.vm]\n\
                max_cpus = 99\n\
                image_dir = \"images\"\n\
                [openshell.drivers.docker]\n";
    fs::write(&file, text).expect("write the file");
    let at = |line: u32, words: &str| format!("{}:{line}: {words}", file.display());
    let wanted = [
        "5 mistakes:".to_string(),
        at(2, "`never`"),
        at(3, "unknown key `openshell.gateway.agent_bn`; did you mean `openshell.gateway.agent_bin`?"),
        at(5, "`99` is not a number of CPUs from 1 to 32"),
        at(6, "`images` is not an absolute path"),
        at(7, "unknown table `openshell.drivers.docker`"),
        "OPENSHELL_GATEWAY_CONFIG".to_string(),
    ];
    let wanted = wanted.each_ref().map(String::as_str);
    mistaken(&bench, &bench.gateway(), &wanted);
    mistaken(&bench, &bench.openshell(&["vm", "list"]), &wanted);
    assert_eq!(fs::read_to_string(&file).expect("read the file"), text, "the file is never written");
}

#[test]
fn a_file_that_is_no_toml_is_named_with_its_line() {
    let bench = Bench::new();
    let file = bench.path("broken.toml");
    fs::write(&file, "[openshell.gateway]\nlog = \"info\n").expect("write the file");
    let bench = bench.with("OPENSHELL_GATEWAY_CONFIG", file.to_str());
    mistaken(&bench, &bench.gateway(), &[&format!("{}:2: ", file.display())]);
    let missing = bench.path("missing.toml");
    let bench = bench.with("OPENSHELL_GATEWAY_CONFIG", missing.to_str());
    mistaken(&bench, &bench.gateway(), &[missing.to_str().expect("UTF-8"), "No such file"]);
}

#[test]
fn a_ttl_out_of_range_is_refused_with_the_range() {
    for ttl in ["0s", "never", "29s", "61m", "-1m", "600"] {
        let bench = Bench::new().with(TTL, Some(ttl));
        mistaken(&bench, &bench.gateway(), &["one mistake:", &format!("{TTL}: `{ttl}`"), "from 30s to 60m"]);
    }
}

#[test]
fn a_runtime_directory_whose_sockets_would_not_fit_is_refused() {
    let long = format!("/dev/shm/{}", "x".repeat(60));
    let bench = Bench::new().with("OPENSHELL_RUNTIME_DIR", Some(&long));
    mistaken(
        &bench,
        &bench.gateway(),
        &["OPENSHELL_RUNTIME_DIR: ", &long, "is 69 bytes long", "choose a shorter path"],
    );
    assert!(!std::path::Path::new(&long).exists());
}

#[test]
fn a_command_line_that_is_wrong_says_what_is_right() {
    let bench = Bench::new();
    for arguments in
        [&["vm", "creat"][..], &["vm", "get"], &["vm", "create", "--no-keep"], &["gateway", "run", "--ttl", "1m"]]
    {
        let ended = bench.openshell(arguments);
        assert_eq!(ended.code, Some(2), "{arguments:?}: {ended:?}");
        assert!(ended.stderr.starts_with("error: ") && ended.stderr.contains("--help"), "{arguments:?}: {ended:?}");
    }
    assert!(bench.gateways().is_empty() && !bench.state().exists(), "nothing was started");
}
