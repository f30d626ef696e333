//! The keys: one row each, from which flags, variables, the file's grammar and the documentation follow.

use std::collections::BTreeMap;

use super::problem::Origin;

/// A thing that can be configured.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord)]
#[allow(missing_docs, reason = "each has its meaning in KEYS")]
pub enum Key {
    StateDir,
    RuntimeDir,
    TokenTtl,
    ProvisioningDeadline,
    AgentBin,
    Log,
    Name,
    Listen,
    DisableTls,
    VmmBin,
    Libkrunfw,
    ImageDir,
    DefaultImage,
    DefaultCpus,
    DefaultMemory,
    MaxCpus,
    MaxMemory,
    ProbeDeadline,
    JailUidBase,
}

/// What there is where nothing is configured.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Fallback {
    /// This text, read like a configured one.
    Text(&'static str),
    /// Computed from the machine and the user; the text is for people.
    Computed(&'static str),
}

/// One key.
#[derive(Debug, Clone, Copy)]
pub struct Row {
    /// Which.
    pub key: Key,
    /// Place in `gateway.toml`.
    pub path: &'static str,
    /// Environment variable.
    pub variable: &'static str,
    /// Long flag, without the dashes.
    pub flag: &'static str,
    /// Default.
    pub fallback: Fallback,
    /// One line.
    pub meaning: &'static str,
}

/// Text that was configured, and where.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Value {
    /// As it was written.
    pub text: String,
    /// Where.
    pub origin: Origin,
}

/// What the layers gave so far; a later layer replaces an earlier one.
pub type Given = BTreeMap<Key, Value>;

const fn row(
    key: Key,
    path: &'static str,
    variable: &'static str,
    flag: &'static str,
    fallback: Fallback,
    meaning: &'static str,
) -> Row {
    Row { key, path, variable, flag, fallback, meaning }
}

/// All keys.
#[rustfmt::skip]
pub const KEYS: [Row; 19] = [
    row(Key::StateDir, "openshell.gateway.state_dir", "OPENSHELL_STATE_DIR", "state-dir",
        Fallback::Computed("`$XDG_STATE_HOME/openshell/gateway`"),
        "Store, signing keys, lock and log of the gateway; made with mode 0700."),
    row(Key::RuntimeDir, "openshell.gateway.runtime_dir", "OPENSHELL_RUNTIME_DIR", "runtime-dir",
        Fallback::Computed("`$XDG_RUNTIME_DIR/openshell` if that is a tmpfs, else `/dev/shm/openshell-<uid>`"),
        "Sockets and tokens; must be a tmpfs, mode 0700, at most 50 bytes long."),
    row(Key::TokenTtl, "openshell.gateway.token_ttl", "OPENSHELL_GATEWAY_TOKEN_TTL", "token-ttl",
        Fallback::Text("10m"),
        "How long a token lives: 30s to 60m. There is no value for \"never\"."),
    row(Key::ProvisioningDeadline, "openshell.gateway.provisioning_deadline",
        "OPENSHELL_GATEWAY_PROVISIONING_DEADLINE", "provisioning-deadline",
        Fallback::Text("60s"),
        "From create to session up, after which a sandbox is in Error: 1s to 1h."),
    row(Key::AgentBin, "openshell.gateway.agent_bin", "OPENSHELL_GATEWAY_AGENT_BIN", "agent-bin",
        Fallback::Computed("`openshell-agent` beside the program"),
        "The static agent that is carried into every guest."),
    row(Key::Log, "openshell.gateway.log", "OPENSHELL_GATEWAY_LOG", "log",
        Fallback::Text("info"),
        "What the gateway logs: a filter like `info` or `warn,host::rotation=debug`."),
    row(Key::Name, "openshell.gateway.name", "OPENSHELL_GATEWAY_NAME", "name",
        Fallback::Text("local"),
        "The name under which the SDK finds this gateway, in `$XDG_CONFIG_HOME/openshell/gateways`."),
    row(Key::Listen, "openshell.gateway.listen", "OPENSHELL_GATEWAY_LISTEN", "listen",
        Fallback::Computed("`127.0.0.1:17670` if nobody listens there, else `off`"),
        "Where users with an SDK connect: an address and a port, or `off`."),
    row(Key::DisableTls, "openshell.gateway.disable_tls", "OPENSHELL_GATEWAY_DISABLE_TLS", "disable-tls",
        Fallback::Text("false"),
        "Speak clear text there; only on a loopback address, and only with processes of the gateway's user."),
    row(Key::VmmBin, "openshell.drivers.vm.vmm_bin", "OPENSHELL_VM_VMM_BIN", "vmm-bin",
        Fallback::Computed("`openshell-vmm` beside the program"),
        "The program that runs one microVM."),
    row(Key::Libkrunfw, "openshell.drivers.vm.libkrunfw", "OPENSHELL_VM_LIBKRUNFW", "libkrunfw",
        Fallback::Computed("`libkrunfw.so.5` beside the program if it is there, else the dynamic linker's search"),
        "The guest kernel."),
    row(Key::ImageDir, "openshell.drivers.vm.image_dir", "OPENSHELL_VM_IMAGE_DIR", "image-dir",
        Fallback::Computed("`images` beside the program if it is there, else `$XDG_DATA_HOME/openshell/images`"),
        "Where images are looked up by name."),
    row(Key::DefaultImage, "openshell.drivers.vm.default_image", "OPENSHELL_VM_DEFAULT_IMAGE", "default-image",
        Fallback::Text("debian"),
        "The image of a sandbox that names none: a name in the image directory, or an absolute path."),
    row(Key::DefaultCpus, "openshell.drivers.vm.default_cpus", "OPENSHELL_VM_DEFAULT_CPUS", "default-cpus",
        Fallback::Text("1"),
        "Virtual CPUs of a sandbox that asks for none."),
    row(Key::DefaultMemory, "openshell.drivers.vm.default_memory", "OPENSHELL_VM_DEFAULT_MEMORY", "default-memory",
        Fallback::Text("512Mi"),
        "Memory of a sandbox that asks for none."),
    row(Key::MaxCpus, "openshell.drivers.vm.max_cpus", "OPENSHELL_VM_MAX_CPUS", "max-cpus",
        Fallback::Computed("the host's CPUs, at most 32"),
        "The most virtual CPUs that a sandbox may ask for: 1 to 32."),
    row(Key::MaxMemory, "openshell.drivers.vm.max_memory", "OPENSHELL_VM_MAX_MEMORY", "max-memory",
        Fallback::Computed("the host's memory"),
        "The most memory that a sandbox may ask for; at least 128Mi."),
    row(Key::ProbeDeadline, "openshell.drivers.vm.probe_deadline", "OPENSHELL_VM_PROBE_DEADLINE", "probe-deadline",
        Fallback::Text("20s"),
        "How long the trial boot may take that tells whether KVM works: 1s to 10m."),
    row(Key::JailUidBase, "openshell.drivers.vm.jail_uid_base", "OPENSHELL_VM_JAIL_UID_BASE", "jail-uid-base",
        Fallback::Text("2130706432"),
        "First user id of jailed vmm processes when the gateway is root; ids that no image and no person uses."),
];

/// A variable that is no key of the file.
#[derive(Debug, Clone, Copy)]
pub struct Variable {
    /// Its name.
    pub name: &'static str,
    /// The flag that is stronger.
    pub flag: Option<&'static str>,
    /// One line.
    pub meaning: &'static str,
}

/// The variable that names the configuration file.
pub const CONFIG_VARIABLE: &str = "OPENSHELL_GATEWAY_CONFIG";
/// The variable that names the socket of a gateway that is there already.
pub const SOCKET_VARIABLE: &str = "OPENSHELL_GATEWAY_SOCKET";

/// The variables that are read besides those of [`KEYS`].
#[rustfmt::skip]
pub const VARIABLES: [Variable; 7] = [
    Variable { name: CONFIG_VARIABLE, flag: Some("config"),
        meaning: "The configuration file, in place of `$XDG_CONFIG_HOME/openshell/gateway.toml`; it must exist." },
    Variable { name: SOCKET_VARIABLE, flag: Some("gateway-socket"),
        meaning: "Socket of a running gateway; the command line then starts none and reads no configuration." },
    Variable { name: "XDG_CONFIG_HOME", flag: None, meaning: "Absolute, else `$HOME/.config`." },
    Variable { name: "XDG_STATE_HOME", flag: None, meaning: "Absolute, else `$HOME/.local/state`." },
    Variable { name: "XDG_DATA_HOME", flag: None, meaning: "Absolute, else `$HOME/.local/share`." },
    Variable { name: "XDG_RUNTIME_DIR", flag: None, meaning: "Used if it is absolute and a tmpfs." },
    Variable { name: "HOME", flag: None, meaning: "Where the `XDG_` variables are not set." },
];

impl Key {
    /// Its row.
    pub fn row(self) -> &'static Row {
        // The order of KEYS is that of the variants; a test holds them together.
        &KEYS[self as usize]
    }
}

#[cfg(test)]
mod tests {
    use std::collections::BTreeSet;

    use super::*;

    #[test]
    fn rows_stand_in_the_order_of_the_variants_and_are_distinct() {
        for (index, row) in KEYS.iter().enumerate() {
            assert_eq!(row.key as usize, index, "{}", row.path);
            assert_eq!(row.key.row().path, row.path);
            assert_eq!(row.flag.replace('-', "_"), row.path.rsplit('.').next().unwrap());
        }
        let distinct = |of: fn(&Row) -> &'static str| KEYS.iter().map(of).collect::<BTreeSet<_>>().len();
        assert_eq!(distinct(|row| row.path), KEYS.len());
        assert_eq!(distinct(|row| row.variable), KEYS.len());
        assert_eq!(distinct(|row| row.flag), KEYS.len());
    }

    /// The first cells of all table rows of the documentation that look like `| `x` | …`.
    fn documented() -> Vec<Vec<String>> {
        let text = include_str!("../../../docs/configuration.md");
        let cells = |line: &str| {
            line.trim().trim_matches('|').split(" | ").map(|cell| cell.trim().to_owned()).collect::<Vec<_>>()
        };
        text.lines().filter(|line| line.starts_with("| `")).map(cells).collect()
    }

    #[test]
    fn documentation_lists_exactly_these_keys_and_variables() {
        let keys = KEYS.iter().map(|row| {
            let fallback = match row.fallback {
                Fallback::Text(text) => format!("`{text}`"),
                Fallback::Computed(text) => text.to_owned(),
            };
            vec![
                format!("`{}`", row.path),
                format!("`{}`", row.variable),
                format!("`--{}`", row.flag),
                fallback,
                row.meaning.to_owned(),
            ]
        });
        let variables = VARIABLES.iter().map(|variable| {
            let flag = variable.flag.map_or_else(|| "–".to_owned(), |flag| format!("`--{flag}`"));
            vec![format!("`{}`", variable.name), flag, variable.meaning.to_owned()]
        });
        assert_eq!(documented(), keys.chain(variables).collect::<Vec<_>>());
    }
}
