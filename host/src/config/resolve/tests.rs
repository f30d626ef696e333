use std::collections::BTreeMap;
use std::ffi::OsString;
use std::path::Path;

use super::super::GatewayFlags;
use super::*;

fn environment(variables: &[(&str, &str)]) -> Environment {
    let mut map = BTreeMap::from([("HOME".to_owned(), OsString::from("/home/u"))]);
    map.extend(variables.iter().map(|(name, value)| ((*name).to_owned(), OsString::from(value))));
    Environment::fixed(move |name| map.get(name).cloned(), |path| path.starts_with("/run"), 1000, "/opt/bin".into())
}

fn load(flags: &[(Key, &str)], variables: &[(&str, &str)], file: &str) -> Result<Config, ConfigError> {
    let mut problems = Vec::new();
    let mut given = super::super::file::parse(Path::new("/etc/g.toml"), file, &mut problems);
    let environment = environment(variables);
    environment.variables(&mut given, &mut problems);
    let given_flags = flags.iter().map(|(key, text)| (*key, (*text).to_owned())).collect();
    GatewayFlags { given: given_flags, ..GatewayFlags::default() }.values(&mut given);
    resolve(&given, &environment, problems)
}

fn said(outcome: Result<Config, ConfigError>) -> Vec<String> {
    outcome.unwrap_err().problems.iter().map(ToString::to_string).collect()
}

#[test]
fn defaults() {
    let config = load(&[], &[], "").unwrap();
    assert_eq!(config.gateway.state_dir, Path::new("/home/u/.local/state/openshell/gateway"));
    assert_eq!(config.gateway.runtime_dir, Path::new("/dev/shm/openshell-1000"));
    assert_eq!(config.gateway.token_ttl, proto::budget::TTL_DEFAULT);
    assert_eq!(config.gateway.provisioning_deadline, proto::budget::PROVISIONING);
    assert_eq!(config.gateway.agent_bin, Path::new("/opt/bin/openshell-agent"));
    assert_eq!(config.vm.vmm_bin, Path::new("/opt/bin/openshell-vmm"));
    assert_eq!(config.vm.libkrunfw, None);
    assert_eq!(config.vm.image_dir, Path::new("/home/u/.local/share/openshell/images"));
    assert_eq!((config.vm.default_cpus, config.vm.default_memory_mib), (1, 512));
    assert_eq!((config.vm.max_cpus, config.vm.max_memory_mib), (8, 16 * 1024));
}

#[test]
fn base_directories_count_if_they_are_absolute_and_the_runtime_one_if_it_is_a_tmpfs() {
    let place = |variables: &[(&str, &str)]| load(&[], variables, "").unwrap().gateway;
    assert_eq!(place(&[("XDG_STATE_HOME", "/s")]).state_dir, Path::new("/s/openshell/gateway"));
    assert_eq!(place(&[("XDG_STATE_HOME", "s")]).state_dir, Path::new("/home/u/.local/state/openshell/gateway"));
    assert_eq!(place(&[("XDG_RUNTIME_DIR", "/run/user/1")]).runtime_dir, Path::new("/run/user/1/openshell"));
    assert_eq!(place(&[("XDG_RUNTIME_DIR", "/disk/1")]).runtime_dir, Path::new("/dev/shm/openshell-1000"));
}

#[test]
fn without_home_the_remedy_is_named() {
    assert_eq!(
        said(load(&[], &[("HOME", "")], "")),
        [
            "default of openshell.gateway.state_dir: neither XDG_STATE_HOME nor HOME is an absolute path; set one of \
             them, or OPENSHELL_STATE_DIR",
            "default of openshell.drivers.vm.image_dir: neither XDG_DATA_HOME nor HOME is an absolute path; set one \
             of them, or OPENSHELL_VM_IMAGE_DIR",
        ]
    );
}

/// Two values that each key accepts, in the order file and variable, and one for the flag.
const VALUES: [(Key, &str, &str, &str); 16] = [
    (Key::StateDir, "/f", "/e", "/a"),
    (Key::RuntimeDir, "/f", "/e", "/a"),
    (Key::TokenTtl, "30s", "31s", "60m"),
    (Key::ProvisioningDeadline, "30s", "31s", "32s"),
    (Key::AgentBin, "/f", "/e", "/a"),
    (Key::Log, "warn", "error", "host=debug"),
    (Key::VmmBin, "/f", "/e", "/a"),
    (Key::Libkrunfw, "/f", "/e", "/a"),
    (Key::ImageDir, "/f", "/e", "/a"),
    (Key::DefaultImage, "f", "e", "a"),
    (Key::DefaultCpus, "2", "3", "4"),
    (Key::DefaultMemory, "256Mi", "1Gi", "2Gi"),
    (Key::MaxCpus, "5", "6", "7"),
    (Key::MaxMemory, "1Gi", "3Gi", "4Gi"),
    (Key::ProbeDeadline, "2s", "3s", "4s"),
    (Key::JailUidBase, "70000", "70001", "70002"),
];

#[test]
fn every_key_is_read_from_every_layer_and_the_stronger_one_wins() {
    let default = load(&[], &[], "").unwrap();
    for (key, in_file, in_variable, in_flag) in VALUES {
        let row = key.row();
        let (table, name) = row.path.rsplit_once('.').unwrap();
        let file = format!("[{table}]\n{name} = \"{in_file}\"\n");
        let (file, variable, flag) = (file.as_str(), [(row.variable, in_variable)], [(key, in_flag)]);
        let from_file = load(&[], &[], file).unwrap();
        let from_variable = load(&[], &variable, "").unwrap();
        let from_flag = load(&flag, &[], "").unwrap();
        let distinct = [&default, &from_file, &from_variable, &from_flag];
        for (index, one) in distinct.iter().enumerate() {
            assert!(distinct[..index].iter().all(|other| other != one), "{}", row.path);
        }
        assert_eq!(load(&[], &variable, file).unwrap(), from_variable, "{}", row.path);
        assert_eq!(load(&flag, &variable, file).unwrap(), from_flag, "{}", row.path);
    }
}

#[test]
fn all_mistakes_are_reported_at_once_with_their_places() {
    let file = "\
[openshell.gateway]
token_ttl = \"never\"
tokn_ttl = \"1m\"

[openshell.drivers.vm]
default_cpus = [1]
default_memory = \"lots\"
state_dir = \"/s\"
[other.product]
version = 3
";
    let variables = [("OPENSHELL_VM_MAX_CPUS", "33"), ("OPENSHELL_GATEWAY_LOG", "host=loud")];
    let said = said(load(&[(Key::JailUidBase, "0")], &variables, file));
    let starts = [
        "/etc/g.toml:3: unknown key `openshell.gateway.tokn_ttl`; did you mean `openshell.gateway.token_ttl`?",
        "/etc/g.toml:6: `openshell.drivers.vm.default_cpus` is array; write a string, a whole number or a boolean",
        "/etc/g.toml:8: unknown key `openshell.drivers.vm.state_dir`; did you mean `openshell.gateway.state_dir`?",
        "/etc/g.toml:9: unknown table `other`",
        "/etc/g.toml:2: `never`: a token is renewed all the time",
        "OPENSHELL_GATEWAY_LOG: `host=loud` is not a log filter",
        "OPENSHELL_VM_MAX_CPUS: `33` is not a number of CPUs from 1 to 32",
        "/etc/g.toml:7: `lots` is not an amount of memory",
        "--jail-uid-base: `0` is not a user id from 65536",
    ];
    assert_eq!(said.len(), starts.len(), "{said:#?}");
    for (said, start) in said.iter().zip(starts) {
        assert!(said.starts_with(start), "{said}\n{start}");
    }
}

#[test]
fn single_values_that_are_refused() {
    for (key, text, reason) in [
        (Key::TokenTtl, "0", "from 30s to 60m"),
        (Key::TokenTtl, "0s", "from 30s to 60m"),
        (Key::TokenTtl, "29s", "from 30s to 60m"),
        (Key::TokenTtl, "61m", "from 30s to 60m"),
        (Key::TokenTtl, "", "from 30s to 60m"),
        (Key::TokenTtl, "-1m", "from 30s to 60m"),
        (Key::ProvisioningDeadline, "0s", "out of range"),
        (Key::ProvisioningDeadline, "soon", "not a duration"),
        (Key::ProbeDeadline, "11m", "out of range"),
        (Key::DefaultCpus, "9", "more than openshell.drivers.vm.max_cpus, which is 8"),
        (Key::DefaultMemory, "17Gi", "more than openshell.drivers.vm.max_memory, which is 16384"),
        (Key::DefaultMemory, "1Mi", "too little"),
        (Key::JailUidBase, "4294967295", "not a user id"),
        (Key::StateDir, "", "is empty"),
        (Key::DefaultImage, "", "is empty"),
        (Key::RuntimeDir, "/a/path/that/is/too/long/for/unix/sockets/to/stand/below/it", "choose a shorter path"),
    ] {
        let said = said(load(&[(key, text)], &[], ""));
        assert!(said.len() == 1 && said[0].contains(reason), "{key:?} {text}: {said:?}");
    }
}

#[test]
fn relative_paths_start_where_they_were_typed_and_mean_nothing_in_a_file() {
    assert_eq!(load(&[(Key::StateDir, "s")], &[], "").unwrap().gateway.state_dir, Path::new("/s"));
    let said = said(load(&[], &[], "openshell.gateway.state_dir = \"~/s\""));
    assert_eq!(said, ["/etc/g.toml:1: `~/s` is not an absolute path"]);
}

#[test]
fn broken_toml_is_located() {
    let said = said(load(&[], &[], "[openshell.gateway]\n\nlog = \"a\nmore = 1\n"));
    assert!(said.iter().any(|line| line.starts_with("/etc/g.toml:3: ")), "{said:?}");
}

#[test]
fn a_foreign_file_is_named_as_such() {
    let error = load(&[], &[], "[openshell]\nversion = 1\n").unwrap_err().to_string();
    assert!(error.contains("another product") && error.contains("OPENSHELL_GATEWAY_CONFIG"), "{error}");
    let error = load(&[(Key::TokenTtl, "0")], &[], "").unwrap_err().to_string();
    assert!(!error.contains("another product"), "{error}");
}

#[test]
fn a_table_that_is_a_value_is_told_so() {
    assert_eq!(said(load(&[], &[], "openshell = 1\n")), ["/etc/g.toml:1: `openshell` is a table: write `[openshell]`"]);
}
