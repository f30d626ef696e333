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
}

/// Whom `who` names: a name of the file, `UID` or `UID:GID`, in this order. The group of a number alone is that of its
/// line, or has its number.
///
/// # Errors
/// None of these, with what was looked for.
pub fn ids(passwd: &str, who: &str) -> Result<WorkloadUser, String> {
    let users = || passwd.lines().filter_map(entry);
    let by_name = users().find(|(name, _)| *name == who).map(|(_, ids)| ids);
    let by_numbers = || {
        let (uid, gid) = who.split_once(':')?;
        Some(WorkloadUser { uid: number(uid)?, gid: number(gid)? })
    };
    let by_uid = || {
        let uid = number(who)?;
        let line = users().map(|(_, ids)| ids).find(|ids| ids.uid == uid);
        Some(line.unwrap_or(WorkloadUser { uid, gid: uid }))
    };
    by_name.or_else(by_numbers).or_else(by_uid).ok_or_else(|| {
        format!("`{}` is neither a user in {PASSWD} nor of the form 1000 or 1000:1000", who.escape_debug())
    })
}

/// The highest number means "as it is" to the kernel, and is nobody's.
fn number(text: &str) -> Option<u32> {
    text.parse().ok().filter(|number| *number != u32::MAX)
}

fn entry(line: &str) -> Option<(&str, WorkloadUser)> {
    let mut fields = line.split(':');
    let (name, _, uid, gid) = (fields.next()?, fields.next()?, fields.next()?, fields.next()?);
    let ids = WorkloadUser { uid: number(uid)?, gid: number(gid)? };
    (!name.is_empty()).then_some((name, ids))
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
    fn users_are_named_by_name_or_number() {
        let passwd = "root:x:0:0:root:/root:/bin/bash\nbroken:x:5\n7:x:8:9::/:/bin/sh\nmax:x:4294967295:1::/:\ngroup:x:1:4294967295::/:\nwww:x:33:34::/var/www:/bin/sh\n";
        for (who, uid, gid) in [
            ("root", 0, 0),
            ("0", 0, 0),
            ("www", 33, 34),
            ("33", 33, 34),
            ("33:9", 33, 9),
            ("7", 8, 9),
            ("5", 5, 5),
            ("5:6", 5, 6),
        ] {
            assert_eq!(ids(passwd, who), Ok(WorkloadUser { uid, gid }), "{who}");
        }
        for who in ["", "broken", "max", "group", "nobody", "7:", ":7", "7:x", "-1", "4294967295", "4294967296"] {
            assert!(ids(passwd, who).is_err(), "{who}");
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
