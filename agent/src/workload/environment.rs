//! The environment of a program, made from nothing. Nothing of the agent's own is passed on, because nothing of it
//! is taken.

use std::collections::BTreeMap;

use proto::layout::RESERVED_ENVIRONMENT;
use secrecy::{ExposeSecret as _, SecretString};

use super::passwd::User;

const PATH: &str = "/usr/local/sbin:/usr/local/bin:/usr/sbin:/usr/bin:/sbin:/bin";
/// The one reserved name that an exec may set: how a Python function travels.
const EXEC_EXEMPT: &str = "OPENSHELL_PYFUNC_B64";

/// Login's variables, then the sandbox's, its secrets, and those of the exec; a later one wins. `terminal` is the terminal's
/// type, where there is one.
pub fn build(
    user: &User,
    sandbox: &BTreeMap<String, String>,
    secrets: &BTreeMap<String, SecretString>,
    exec: &[(String, String)],
    terminal: Option<&str>,
) -> BTreeMap<String, String> {
    let login = [
        ("PATH", PATH),
        ("HOME", &user.home),
        ("USER", &user.name),
        ("LOGNAME", &user.name),
        ("SHELL", &user.shell),
        ("LANG", "C.UTF-8"),
    ];
    let mut environment: BTreeMap<String, String> =
        login.into_iter().map(|(name, value)| (name.to_owned(), value.to_owned())).collect();
    if let Some(terminal) = terminal {
        environment.insert("TERM".to_owned(), terminal.to_owned());
    }
    let sandbox = sandbox.iter().filter(|(name, _)| !name.starts_with(RESERVED_ENVIRONMENT));
    let exec = exec.iter().filter(|(name, _)| !name.starts_with(RESERVED_ENVIRONMENT) || name == EXEC_EXEMPT);
    let secrets = secrets.iter().filter(|(name, _)| !name.starts_with(RESERVED_ENVIRONMENT));
    let secrets = secrets.map(|(name, value)| (name.as_str(), value.expose_secret()));
    let sandbox = sandbox.map(|(name, value)| (name.as_str(), value.as_str()));
    let chosen = sandbox.chain(secrets).chain(exec.map(|(name, value)| (name.as_str(), value.as_str())));
    let sound = chosen.filter(|(name, value)| is_name(name) && !value.contains('\0'));
    environment.extend(sound.map(|(name, value)| (name.to_owned(), value.to_owned())));
    environment
}

/// What the kernel can carry.
fn is_name(name: &str) -> bool {
    !name.is_empty() && !name.contains(['=', '\0'])
}

#[cfg(test)]
mod tests {
    use proto::boot::DEFAULT_USER;

    use super::*;

    fn pairs(pairs: &[(&str, &str)]) -> Vec<(String, String)> {
        pairs.iter().map(|(name, value)| ((*name).to_owned(), (*value).to_owned())).collect()
    }

    #[test]
    fn later_ones_win_and_reserved_ones_are_dropped() {
        let user = User::find("me:x:1000:1000::/home/me:/bin/bash", DEFAULT_USER);
        let sandbox = pairs(&[("A", "1"), ("HOME", "/work"), ("OPENSHELL_PYFUNC_B64", "no"), ("OPENSHELL_X", "no")]);
        let exec = pairs(&[
            ("A", "2"),
            ("OPENSHELL_PYFUNC_B64", "yes"),
            ("OPENSHELL_ENDPOINT", "no"),
            ("B=C", "no"),
            ("", "no"),
        ]);
        let secrets = BTreeMap::from([("A".to_owned(), SecretString::from("s")), ("S".to_owned(), "t".into())]);
        let environment = build(&user, &sandbox.into_iter().collect(), &secrets, &exec, None);
        let get = |name: &str| environment.get(name).map(String::as_str);
        assert_eq!(get("A"), Some("2"));
        assert_eq!(get("HOME"), Some("/work"));
        assert_eq!(get("USER"), Some("me"));
        assert_eq!(get("OPENSHELL_PYFUNC_B64"), Some("yes"));
        assert_eq!(get("S"), Some("t"));
        assert_eq!(get("TERM"), None);
        assert_eq!(environment.len(), 9, "{environment:?}");
        let none = BTreeMap::new();
        let on_terminal = build(&user, &none, &BTreeMap::new(), &[], Some("xterm"));
        assert_eq!(on_terminal.get("TERM").map(String::as_str), Some("xterm"));
    }
}
