//! A declaration from its file: TOML, every key known, every mistake with its line.

use std::collections::BTreeMap;
use std::ops::Range;
use std::time::Duration;

use serde::Deserialize;
use toml::Spanned;

use super::{Dependency, EXTENSION, FILE_MAX, Mistake, OF_IMAGE, Readiness, Service, StopSignal};
use crate::boot::RestartPolicy;
use crate::budget::{ENVIRONMENT_MAX, STOP_GUEST, VARIABLE_VALUE_MAX};
use crate::layout::RESERVED_ENVIRONMENT;
use crate::log::{SOURCE_AGENT, SOURCE_MAIN};

const NAME_MAX: usize = 32;
const ARGUMENTS_MAX: usize = 256;
const START_TIMEOUT: Duration = Duration::from_secs(60);
const START_TIMEOUT_MAX: Duration = Duration::from_secs(10 * 60);
const STOP_TIMEOUT: Duration = Duration::from_secs(3);

/// What may stand in a file.
#[derive(Deserialize)]
#[serde(deny_unknown_fields)]
struct Declaration {
    command: Spanned<Vec<String>>,
    user: Option<Spanned<String>>,
    workdir: Option<Spanned<String>>,
    environment: Option<Spanned<BTreeMap<String, String>>>,
    #[serde(default)]
    after: Vec<Spanned<String>>,
    #[serde(default)]
    requires: Vec<Spanned<String>>,
    #[serde(default)]
    r#type: Kind,
    ready: Option<Spanned<Ready>>,
    start_timeout: Option<Spanned<String>>,
    restart: Option<Spanned<RestartPolicy>>,
    #[serde(default)]
    stop_signal: StopSignal,
    stop_timeout: Option<Spanned<String>>,
    #[serde(default)]
    critical: bool,
    optional: Option<Spanned<bool>>,
}

#[derive(Deserialize, Default, PartialEq, Eq)]
#[serde(rename_all = "kebab-case")]
enum Kind {
    #[default]
    Simple,
    Oneshot,
}

#[derive(Deserialize)]
#[serde(rename_all = "kebab-case")]
enum Ready {
    Notify,
    Command(Vec<String>),
}

/// What is wrong, and where in the text.
type Wrong = (Range<usize>, String);

/// Reads the declaration `text` of `file`; the service has the file's name.
///
/// # Errors
/// The first mistake, with its line.
pub fn parse(file: &str, text: &str) -> Result<Service, Mistake> {
    let of_file = |message: String| Mistake { file: file.to_owned(), line: None, message };
    let name = name(file).map_err(of_file)?;
    if text.len() > FILE_MAX {
        return Err(of_file(format!("longer than {FILE_MAX} bytes")));
    }
    let line = |at: usize| text.as_bytes()[..at.min(text.len())].iter().filter(|byte| **byte == b'\n').count() + 1;
    let mistake = |(at, message): Wrong| Mistake { file: file.to_owned(), line: Some(line(at.start)), message };
    let declared: Declaration = toml::from_str(text)
        .map_err(|error| mistake((error.span().unwrap_or_default(), error.message().replace('\n', " "))))?;
    let dependencies = dependencies(&declared, line).map_err(mistake)?;
    check(&declared).map_err(mistake)?;
    let ready = readiness(&declared).map_err(mistake)?;
    Ok(Service {
        name,
        file: file.to_owned(),
        start_timeout: within(declared.start_timeout, START_TIMEOUT, START_TIMEOUT_MAX).map_err(mistake)?,
        stop_timeout: within(declared.stop_timeout, STOP_TIMEOUT, STOP_GUEST).map_err(mistake)?,
        command: declared.command.into_inner(),
        user: declared.user.map(Spanned::into_inner),
        environment: declared.environment.map(Spanned::into_inner).unwrap_or_default(),
        workdir: declared.workdir.map(Spanned::into_inner),
        dependencies,
        ready,
        restart: declared.restart.map_or(RestartPolicy::OnFailure, Spanned::into_inner),
        stop_signal: declared.stop_signal,
        critical: declared.critical,
        optional: declared.optional.is_some_and(Spanned::into_inner),
    })
}

/// From the last part of a path.
fn name(file: &str) -> Result<String, String> {
    let last = file.rsplit('/').next().unwrap_or_default();
    let stem = last.strip_suffix(EXTENSION).ok_or_else(|| format!("the name does not end with {EXTENSION}"))?;
    let plain = |byte: u8| byte.is_ascii_lowercase() || byte.is_ascii_digit() || b"-_.".contains(&byte);
    let begins = stem.bytes().next().is_some_and(|byte| byte.is_ascii_lowercase() || byte.is_ascii_digit());
    if !begins || !stem.bytes().all(plain) || stem.len() > NAME_MAX {
        let rule = format!("1 to {NAME_MAX} of a-z, 0-9, -, _ and ., the first one a letter or digit");
        return Err(format!("a service cannot be named `{}`: {rule}", stem.escape_debug()));
    }
    if [SOURCE_MAIN, SOURCE_AGENT].contains(&stem) {
        return Err(format!("a service cannot be named `{stem}`: in the sandbox's log that name is taken"));
    }
    Ok(stem.to_owned())
}

fn dependencies(declared: &Declaration, line: impl Fn(usize) -> usize) -> Result<Vec<Dependency>, Wrong> {
    let mut dependencies: Vec<Dependency> = vec![];
    for (required, list) in [(true, &declared.requires), (false, &declared.after)] {
        for named in list {
            let (on, of_image) = match named.get_ref().strip_prefix(OF_IMAGE) {
                Some(rest) => (rest, true),
                None => (named.get_ref().as_str(), false),
            };
            if dependencies.iter().any(|known| known.on == on) {
                return Err((named.span(), format!("`{}` is named twice", on.escape_debug())));
            }
            dependencies.push(Dependency { on: on.to_owned(), required, of_image, line: line(named.span().start) });
        }
    }
    Ok(dependencies)
}

fn check(declared: &Declaration) -> Result<(), Wrong> {
    argv(declared.command.get_ref()).map_err(|why| (declared.command.span(), format!("command: {why}")))?;
    if let Some(user) = &declared.user {
        check_user(user.get_ref()).map_err(|why| (user.span(), format!("user: {why}")))?;
    }
    if let Some(workdir) =
        declared.workdir.as_ref().filter(|dir| !dir.get_ref().starts_with('/') || has_nul(dir.get_ref()))
    {
        return Err((workdir.span(), "workdir: an absolute path is needed".to_owned()));
    }
    if let Some(environment) = &declared.environment {
        variables(environment.get_ref()).map_err(|why| (environment.span(), format!("environment: {why}")))?;
    }
    match (&declared.restart, &declared.optional) {
        (Some(restart), _) if declared.r#type == Kind::Oneshot && *restart.get_ref() == RestartPolicy::Always => {
            Err((restart.span(), "restart: a oneshot that is always started again never comes to its end".to_owned()))
        }
        (_, Some(optional)) if *optional.get_ref() && declared.critical => {
            Err((optional.span(), "optional: a critical service is not optional".to_owned()))
        }
        _ => Ok(()),
    }
}

fn readiness(declared: &Declaration) -> Result<Readiness, Wrong> {
    match (&declared.r#type, &declared.ready) {
        (Kind::Oneshot, None) => Ok(Readiness::Exit),
        (Kind::Oneshot, Some(ready)) => {
            Err((ready.span(), "ready: a oneshot is ready when it has ended with 0, and by nothing else".to_owned()))
        }
        (Kind::Simple, None) => Ok(Readiness::Started),
        (Kind::Simple, Some(ready)) => match ready.get_ref() {
            Ready::Notify => Ok(Readiness::Notify),
            Ready::Command(command) => {
                argv(command).map_err(|why| (ready.span(), format!("ready.command: {why}")))?;
                Ok(Readiness::Command(command.clone()))
            }
        },
    }
}

fn argv(argv: &[String]) -> Result<(), String> {
    match argv.first() {
        None => Err("no program is named".to_owned()),
        Some(program) if program.is_empty() => Err("no program is named".to_owned()),
        _ if argv.len() > ARGUMENTS_MAX => Err(format!("more than {ARGUMENTS_MAX} arguments")),
        _ if argv.iter().any(|argument| has_nul(argument)) => Err("an argument holds a NUL".to_owned()),
        _ => Ok(()),
    }
}

/// Whether there is such a user is seen in the guest; that it is not root, here as far as it can be.
fn check_user(user: &str) -> Result<(), String> {
    let numeric = user.bytes().all(|byte| byte.is_ascii_digit() || byte == b':');
    let ids: Vec<Option<u32>> = user.split(':').map(|id| id.parse().ok()).collect();
    match ids[..] {
        [Some(0)] | [Some(0), _] | [_, Some(0)] => Err("a service does not run as root".to_owned()),
        [Some(_)] | [Some(_), Some(_)] => Ok(()),
        _ if user == "root" => Err("a service does not run as root".to_owned()),
        [None] if !user.is_empty() && !numeric && !user.contains(|c: char| c.is_control() || c.is_whitespace()) => {
            Ok(())
        }
        _ => Err(format!("`{}` is neither a name nor UID nor UID:GID", user.escape_debug())),
    }
}

fn variables(environment: &BTreeMap<String, String>) -> Result<(), String> {
    if environment.len() > ENVIRONMENT_MAX {
        return Err(format!("more than {ENVIRONMENT_MAX} variables"));
    }
    for (name, value) in environment {
        let bad = |rule: &str| Err(format!("`{}`: {rule}", name.escape_debug()));
        if name.is_empty() || name.contains('=') || has_nul(name) {
            return bad("not a name");
        }
        if name.starts_with(RESERVED_ENVIRONMENT) || name == "NOTIFY_SOCKET" {
            return bad("reserved");
        }
        if has_nul(value) || value.len() > VARIABLE_VALUE_MAX {
            return bad("a value has at most 8 KiB and no NUL");
        }
    }
    Ok(())
}

fn has_nul(text: &str) -> bool {
    text.contains('\0')
}

fn within(text: Option<Spanned<String>>, default: Duration, most: Duration) -> Result<Duration, Wrong> {
    let Some(text) = text else { return Ok(default) };
    match humantime::parse_duration(text.get_ref()) {
        Ok(duration) if !duration.is_zero() && duration <= most => Ok(duration),
        Ok(_) => Err((
            text.span(),
            format!("a duration above 0 and of at most {} is needed", humantime::format_duration(most)),
        )),
        Err(error) => Err((text.span(), format!("not a duration like 500ms, 5s or 2m: {error}"))),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    const FULL: &str = r#"
command = ["/usr/bin/db", "--data", "/var/lib/my db"]
user = "1001:1002"
workdir = "/var/lib"
environment = { A = "b", C = "" }
requires = ["disk"]
after = [
    "image:net",
]
ready = { command = ["db", "ping"] }
start_timeout = "90s"
restart = "always"
stop_signal = "INT"
stop_timeout = "1s500ms"
critical = true
"#;

    #[test]
    fn a_full_declaration_is_read_with_the_lines_of_its_dependencies() {
        let service = parse("/etc/openshell/services.d/db.toml", FULL).unwrap();
        let dependency =
            |on: &str, required, of_image, line| Dependency { on: on.to_owned(), required, of_image, line };
        assert_eq!(service.name, "db");
        assert_eq!(service.command, ["/usr/bin/db", "--data", "/var/lib/my db"]);
        assert_eq!(service.dependencies, [dependency("disk", true, false, 6), dependency("net", false, true, 8)]);
        assert_eq!(service.ready, Readiness::Command(vec!["db".into(), "ping".into()]));
        assert_eq!((service.stop_signal, service.stop_timeout), (StopSignal::Int, Duration::from_millis(1500)));
        assert_eq!((service.start_timeout, service.critical, service.optional), (Duration::from_secs(90), true, false));
        let json = serde_json::to_string(&service).unwrap();
        assert_eq!(serde_json::from_str::<Service>(&json).unwrap(), service, "{json}");
    }

    #[test]
    fn a_name_is_plain_and_not_taken() {
        for (file, said) in
            [("a", ".toml"), ("A.toml", "a-z"), (".toml", "a-z"), ("main.toml", "taken"), ("agent.toml", "taken")]
        {
            assert!(name(file).unwrap_err().contains(said), "{file}");
        }
        assert_eq!(name("main-2.toml"), Ok("main-2".to_owned()));
    }

    #[test]
    fn what_is_not_said_has_a_default() {
        let service = parse("a.toml", "command = [\"a\"]").unwrap();
        assert_eq!((service.ready, service.restart), (Readiness::Started, RestartPolicy::OnFailure));
        assert_eq!((service.stop_signal, service.start_timeout), (StopSignal::Term, START_TIMEOUT));
        let once = parse("a.toml", "command = [\"a\"]\ntype = \"oneshot\"").unwrap();
        assert_eq!(once.ready, Readiness::Exit);
        let notify = parse("a.toml", "command = [\"a\"]\nready = \"notify\"").unwrap();
        assert_eq!(notify.ready, Readiness::Notify);
    }

    #[test]
    fn every_mistake_has_its_line() {
        for (line, text, words) in [
            (1, "", "missing field `command`"),
            (1, "command = []", "no program"),
            (2, "command = [\"a\"]\nxcommand = 1", "unknown field `xcommand`"),
            (2, "command = [\"a\"]\nrestart = \"sometimes\"", "unknown variant"),
            (3, "command = [\"a\"]\n\nuser = \"root\"", "as root"),
            (2, "command = [\"a\"]\nuser = \"0:5\"", "as root"),
            (2, "command = [\"a\"]\nuser = \"5:\"", "neither a name"),
            (2, "command = [\"a\"]\nworkdir = \"here\"", "absolute"),
            (2, "command = [\"a\"]\nstart_timeout = \"1h\"", "at most 10m"),
            (2, "command = [\"a\"]\nstop_timeout = \"0s\"", "above 0"),
            (2, "command = [\"a\"]\nstop_timeout = \"soon\"", "not a duration"),
            (3, "command = [\"a\"]\nrequires = [\"b\"]\nafter = [\"b\"]", "twice"),
            (3, "command = [\"a\"]\ntype = \"oneshot\"\nready = \"notify\"", "oneshot"),
            (3, "command = [\"a\"]\ntype = \"oneshot\"\nrestart = \"always\"", "oneshot"),
            (2, "command = [\"a\"]\noptional = true\ncritical = true", "critical"),
            (2, "command = [\"a\"]\nenvironment = { OPENSHELL_X = \"\" }", "reserved"),
            (2, "command = [\"a\"]\nready = { command = [] }", "no program"),
            (2, "command = [\"a\"]\nuser = ", ""),
        ] {
            let mistake = parse("x.toml", text).unwrap_err();
            assert_eq!(mistake.line, Some(line), "{text:?}: {mistake}");
            assert!(mistake.message.contains(words), "{text:?}: {mistake}");
        }
        for file in ["x.conf", ".toml", "X.toml", "a b.toml", "../.toml", "-a.toml"] {
            let mistake = parse(file, "command = [\"a\"]").unwrap_err();
            assert_eq!(mistake.line, None, "{mistake}");
        }
    }
}
