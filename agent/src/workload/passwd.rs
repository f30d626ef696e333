//! The user's line of `/etc/passwd`. The agent is static: it reads the file itself, since the C library's way would
//! load the image's libraries.

use proto::boot::WorkloadUser;

/// What a login needs to know.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct User {
    /// From the boot spec, not from the file.
    pub ids: WorkloadUser,
    /// `LOGNAME`.
    pub name: String,
    /// `HOME`.
    pub home: String,
    /// `SHELL`.
    pub shell: String,
}

/// Where users are described.
pub const PASSWD: &str = "/etc/passwd";
const SHELL: &str = "/bin/sh";

impl User {
    /// The first line with this uid; an image without one still gets a user that works.
    pub fn find(passwd: &str, ids: WorkloadUser) -> Self {
        let line = passwd.lines().find_map(|line| parse(line, ids));
        let unknown = || Self { ids, name: ids.uid.to_string(), home: "/".to_owned(), shell: SHELL.to_owned() };
        line.unwrap_or_else(unknown)
    }

    /// By name, which has to be there, or by `uid` or `uid:gid`, which have not: the group is the user's then, or has
    /// the user's number.
    ///
    /// # Errors
    /// There is no such user, or it is root.
    pub fn named(passwd: &str, who: &str) -> Result<Self, String> {
        let (user, group) = who.split_once(':').map_or((who, None), |(user, group)| (user, group.parse().ok()));
        let ids = passwd.lines().find_map(|line| {
            let fields: Vec<&str> = line.split(':').collect();
            let [name, _, uid, gid, ..] = fields[..] else { return None };
            (name == user || uid == user).then(|| Some((uid.parse().ok()?, gid.parse().ok()?)))?
        });
        let number = || user.parse().ok().map(|uid: u32| (uid, uid));
        let (uid, gid) = ids.or_else(number).ok_or_else(|| format!("there is no user `{user}` in {PASSWD}"))?;
        let ids = WorkloadUser { uid, gid: group.unwrap_or(gid) };
        if ids.uid == 0 || ids.gid == 0 {
            return Err(format!("user `{who}` is root, but must not be"));
        }
        Ok(Self::find(passwd, ids))
    }
}

fn parse(line: &str, ids: WorkloadUser) -> Option<User> {
    let fields: Vec<&str> = line.split(':').collect();
    let [name, _, uid, _, _, home, shell] = fields[..] else { return None };
    if name.is_empty() || uid.parse() != Ok(ids.uid) {
        return None;
    }
    let or = |field: &str, default: &str| if field.starts_with('/') { field } else { default }.to_owned();
    Some(User { ids, name: name.to_owned(), home: or(home, "/"), shell: or(shell, SHELL) })
}

#[cfg(test)]
mod tests {
    use super::*;

    const IDS: WorkloadUser = WorkloadUser { uid: 1000, gid: 100 };

    #[test]
    fn a_user_is_found_by_uid() {
        let passwd = "root:x:0:0:root:/root:/bin/bash\n# a comment\nbroken:x:1000\nme:x:1000:1000:,,,:/home/me:/bin/zsh\nyou:x:1000:1:::\n";
        let user = User::find(passwd, IDS);
        let words = ["me", "/home/me", "/bin/zsh"].map(str::to_owned);
        assert_eq!([user.name, user.home, user.shell], words);
        assert_eq!(user.ids, IDS);
    }

    #[test]
    fn a_user_is_named_by_name_or_number_and_is_never_root() {
        let passwd = "root:x:0:0:root:/root:/bin/sh\ntoor:x:0:0::/:\ndb:x:70:71:,,,:/var/lib/db:/bin/ash\n";
        for (who, uid, gid, home) in [
            ("db", 70, 71, "/var/lib/db"),
            ("70", 70, 71, "/var/lib/db"),
            ("70:9", 70, 9, "/var/lib/db"),
            ("5", 5, 5, "/"),
            ("5:6", 5, 6, "/"),
        ] {
            let user = User::named(passwd, who).unwrap();
            assert_eq!((user.ids, user.home.as_str()), (WorkloadUser { uid, gid }, home), "{who}");
        }
        for who in ["root", "toor", "0", "5:0", "nobody", ""] {
            assert!(User::named(passwd, who).is_err(), "{who}");
        }
    }

    #[test]
    fn what_is_missing_has_a_default() {
        for passwd in ["", "me:x:1000:1000:::", "me:x:1000:1000::home:"] {
            let user = User::find(passwd, IDS);
            assert_eq!([user.home.as_str(), user.shell.as_str()], ["/", "/bin/sh"], "{passwd:?}");
        }
        assert_eq!(User::find("", IDS).name, "1000");
    }
}
