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

const SHELL: &str = "/bin/sh";

impl User {
    /// The first line with this uid; an image without one still gets a user that works.
    pub fn find(passwd: &str, ids: WorkloadUser) -> Self {
        let line = passwd.lines().find_map(|line| parse(line, ids));
        let unknown = || Self { ids, name: ids.uid.to_string(), home: "/".to_owned(), shell: SHELL.to_owned() };
        line.unwrap_or_else(unknown)
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
    fn what_is_missing_has_a_default() {
        for passwd in ["", "me:x:1000:1000:::", "me:x:1000:1000::home:"] {
            let user = User::find(passwd, IDS);
            assert_eq!([user.home.as_str(), user.shell.as_str()], ["/", "/bin/sh"], "{passwd:?}");
        }
        assert_eq!(User::find("", IDS).name, "1000");
    }
}
