//! From what was given to a configuration, or to all of its mistakes.

use std::net::SocketAddr;
use std::ops::RangeInclusive;
use std::path::PathBuf;
use std::time::Duration;

use proto::budget::{TTL_MAX, TTL_MIN};

use super::keys::{Fallback, Given, Key, Value};
use super::problem::{ConfigError, Origin, Problem};
use proto::vmm::{MEMORY_MIB, VCPUS};

use super::{Config, Environment, GatewayConfig, Listen, VmConfig, directories};
use crate::quantity;

const SECOND: Duration = Duration::from_secs(1);
const PROVISIONING_MAX: Duration = Duration::from_secs(60 * 60);
const PROBE_MAX: Duration = Duration::from_secs(10 * 60);
/// Ids below belong to people, to services and to the ranges that distributions hand to containers of users;
/// above, they would be negative for programs that keep them as signed numbers.
const JAIL_UIDS: RangeInclusive<u32> = 65_536..=2_147_000_000;

pub(super) fn resolve(given: &Given, environment: &Environment, problems: Vec<Problem>) -> Result<Config, ConfigError> {
    let mut resolving = Resolving { given, environment, problems };
    let gateway = resolving.gateway();
    let vm = resolving.vm();
    match (gateway, vm) {
        (Some(gateway), Some(vm)) if resolving.problems.is_empty() => Ok(Config { gateway, vm }),
        _ => Err(ConfigError { problems: resolving.problems }),
    }
}

struct Resolving<'a> {
    given: &'a Given,
    environment: &'a Environment,
    problems: Vec<Problem>,
}

impl Resolving<'_> {
    // Every key is read before the first `?`: a mistake in one hides none in another.
    fn gateway(&mut self) -> Option<GatewayConfig> {
        let state_dir =
            self.directory(Key::StateDir, |env| below(env, "XDG_STATE_HOME", ".local/state", "openshell/gateway"));
        let runtime_dir = self.directory(Key::RuntimeDir, |env| Ok(directories::default_runtime_dir(env)));
        let runtime_dir = runtime_dir.and_then(|dir| self.judge(Key::RuntimeDir, directories::socket_fits(dir)));
        let token_ttl = self.text(Key::TokenTtl, token_ttl);
        let provisioning_deadline =
            self.text(Key::ProvisioningDeadline, |text| duration(text, SECOND..=PROVISIONING_MAX));
        let agent_bin = self.directory(Key::AgentBin, |env| Ok(env.executable_dir.join("openshell-agent")));
        let log = self.text(Key::Log, log_filter);
        let name = self.text(Key::Name, gateway_name);
        let listen = self.listen();
        let registry_dir = self.environment.base_dir("XDG_CONFIG_HOME", ".config").map(|dir| dir.join("openshell"));
        Some(GatewayConfig {
            state_dir: state_dir?,
            runtime_dir: runtime_dir?,
            token_ttl: token_ttl?,
            provisioning_deadline: provisioning_deadline?,
            agent_bin: agent_bin?,
            log: log?,
            name: name?,
            listen: listen?,
            registry_dir,
        })
    }

    fn vm(&mut self) -> Option<VmConfig> {
        let env = self.environment;
        let vmm_bin = self.directory(Key::VmmBin, |env| Ok(env.executable_dir.join("openshell-vmm")));
        let libkrunfw = self.libkrunfw();
        let image_dir = self.directory(Key::ImageDir, image_dir);
        let default_image = self.text(Key::DefaultImage, image);
        let max_cpus = self.or_else(Key::MaxCpus, quantity::cpus, || {
            u8::try_from(env.cpus.clamp(1, usize::from(*VCPUS.end()))).unwrap_or(1)
        });
        let max_memory_mib =
            self.or_else(Key::MaxMemory, quantity::memory_mib, || env.memory_mib.max(*MEMORY_MIB.start()));
        let default_cpus =
            self.text(Key::DefaultCpus, |text| at_most(text, quantity::cpus(text)?, max_cpus, Key::MaxCpus));
        let default_memory_mib = self.text(Key::DefaultMemory, |text| {
            at_most(text, quantity::memory_mib(text)?, max_memory_mib, Key::MaxMemory)
        });
        let probe_deadline = self.text(Key::ProbeDeadline, |text| duration(text, SECOND..=PROBE_MAX));
        let jail_uid_base = self.text(Key::JailUidBase, jail_uid);
        Some(VmConfig {
            vmm_bin: vmm_bin?,
            libkrunfw: libkrunfw?,
            image_dir: image_dir?,
            default_image: default_image?,
            default_cpus: default_cpus?,
            default_memory_mib: default_memory_mib?,
            max_cpus: max_cpus?,
            max_memory_mib: max_memory_mib?,
            probe_deadline: probe_deadline?,
            jail_uid_base: jail_uid_base?,
        })
    }

    fn listen(&mut self) -> Option<Listen> {
        let clear = self.text(Key::DisableTls, boolean)?;
        if !self.given.contains_key(&Key::Listen) {
            return Some(Listen::Usual { clear });
        }
        self.text(Key::Listen, |text| match text {
            "off" => Ok(Listen::Off),
            text => listen_address(text, clear),
        })
    }

    fn libkrunfw(&mut self) -> Option<Option<PathBuf>> {
        if self.given.contains_key(&Key::Libkrunfw) {
            return self.directory(Key::Libkrunfw, |_| Err(String::new())).map(Some);
        }
        let sibling = self.environment.executable_dir.join("libkrunfw.so.5");
        Some(sibling.exists().then_some(sibling))
    }

    fn origin(&self, key: Key) -> Origin {
        self.given.get(&key).map_or(Origin::Default(key), |value| value.origin.clone())
    }

    fn judge<T>(&mut self, key: Key, outcome: Result<T, String>) -> Option<T> {
        let origin = self.origin(key);
        outcome.map_err(|message| self.problems.push(Problem::new(origin, message))).ok()
    }

    /// A key whose default is text as well.
    fn text<T>(&mut self, key: Key, parse: impl FnOnce(&str) -> Result<T, String>) -> Option<T> {
        let fallback = match key.row().fallback {
            Fallback::Text(text) | Fallback::Computed(text) => text,
        };
        let text = self.given.get(&key).map_or(fallback, |value| value.text.as_str());
        let outcome = parse(text);
        self.judge(key, outcome)
    }

    /// A key whose default is computed.
    fn or_else<T>(
        &mut self,
        key: Key,
        parse: impl FnOnce(&str) -> Result<T, String>,
        fallback: impl FnOnce() -> T,
    ) -> Option<T> {
        let outcome = match self.given.get(&key) {
            Some(value) => parse(&value.text),
            None => Ok(fallback()),
        };
        self.judge(key, outcome)
    }

    /// A key that is a path.
    fn directory(
        &mut self,
        key: Key,
        fallback: impl FnOnce(&Environment) -> Result<PathBuf, String>,
    ) -> Option<PathBuf> {
        let outcome = match self.given.get(&key) {
            Some(value) => absolute(value, self.environment),
            None => fallback(self.environment)
                .map_err(|cause| format!("{cause}; set one of them, or {}", key.row().variable)),
        };
        self.judge(key, outcome)
    }
}

/// Whoever types a path means it from where they are; a file has no such place.
fn absolute(value: &Value, environment: &Environment) -> Result<PathBuf, String> {
    let path = PathBuf::from(&value.text);
    match value.origin {
        _ if path.is_absolute() => Ok(path),
        _ if value.text.is_empty() => Err("is empty; write an absolute path".to_owned()),
        Origin::File { .. } => Err(format!("`{}` is not an absolute path", value.text.escape_debug())),
        _ => Ok(environment.current_dir.join(path)),
    }
}

fn image_dir(env: &Environment) -> Result<PathBuf, String> {
    let sibling = env.executable_dir.join("images");
    if sibling.is_dir() {
        return Ok(sibling);
    }
    below(env, "XDG_DATA_HOME", ".local/share", "openshell/images")
}

fn below(environment: &Environment, variable: &str, below_home: &str, rest: &str) -> Result<PathBuf, String> {
    let base = environment.base_dir(variable, below_home);
    base.map(|base| base.join(rest)).ok_or_else(|| format!("neither {variable} nor HOME is an absolute path"))
}

fn token_ttl(text: &str) -> Result<Duration, String> {
    let reason = "a token is renewed all the time and never lives long: give a duration from 30s to 60m";
    let ttl = humantime::parse_duration(text).map_err(|_| format!("`{}`: {reason}", text.escape_debug()))?;
    if (TTL_MIN..=TTL_MAX).contains(&ttl) { Ok(ttl) } else { Err(format!("`{text}`: {reason}")) }
}

fn duration(text: &str, bounds: RangeInclusive<Duration>) -> Result<Duration, String> {
    let bad = |why: &str| {
        let (least, most) = (humantime::format_duration(*bounds.start()), humantime::format_duration(*bounds.end()));
        format!("`{}`: {why}; give one from {least} to {most}", text.escape_debug())
    };
    let duration = humantime::parse_duration(text).map_err(|_| bad("not a duration like 90s or 2m"))?;
    if bounds.contains(&duration) { Ok(duration) } else { Err(bad("duration out of range")) }
}

fn at_most<T: PartialOrd + std::fmt::Display>(text: &str, value: T, most: Option<T>, key: Key) -> Result<T, String> {
    match most {
        Some(most) if value > most => Err(format!("`{text}` is more than {}, which is {most}", key.row().path)),
        _ => Ok(value),
    }
}

fn boolean(text: &str) -> Result<bool, String> {
    text.parse().map_err(|_| format!("`{}` is neither `true` nor `false`", text.escape_debug()))
}

/// A name that is one component of a path.
fn gateway_name(text: &str) -> Result<String, String> {
    let fits = (1..=63).contains(&text.len())
        && text.bytes().all(|byte| byte.is_ascii_alphanumeric() || b"-_.".contains(&byte))
        && !text.starts_with('.');
    let bad = || format!("`{}` is no name: 1 to 63 letters, digits, `-`, `_` and `.`", text.escape_debug());
    fits.then(|| text.to_owned()).ok_or_else(bad)
}

fn listen_address(text: &str, clear: bool) -> Result<Listen, String> {
    let address: SocketAddr = text.parse().map_err(|_| {
        format!("`{}` is neither `off` nor an address with a port like 127.0.0.1:17670", text.escape_debug())
    })?;
    if clear && !address.ip().is_loopback() {
        return Err(format!("`{text}` is not a loopback address, and {} is set", Key::DisableTls.row().path));
    }
    Ok(Listen::At { address, clear })
}

fn log_filter(text: &str) -> Result<String, String> {
    match tracing_subscriber::EnvFilter::builder().parse(text) {
        Ok(_) => Ok(text.to_owned()),
        Err(cause) => Err(format!("`{}` is not a log filter: {cause}", text.escape_debug())),
    }
}

fn image(text: &str) -> Result<String, String> {
    if text.is_empty() { Err("is empty; write a name or an absolute path".to_owned()) } else { Ok(text.to_owned()) }
}

fn jail_uid(text: &str) -> Result<u32, String> {
    let uid = text.parse::<u32>().ok().filter(|uid| JAIL_UIDS.contains(uid));
    uid.ok_or_else(|| {
        let (least, most) = (JAIL_UIDS.start(), JAIL_UIDS.end());
        format!("`{}` is not a user id from {least} to {most}", text.escape_debug())
    })
}

#[cfg(test)]
mod tests;
