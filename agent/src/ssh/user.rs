//! Another user than the sandbox's, for an exec that asks for one.

use std::path::Path;

use proto::boot::WorkloadUser;

use crate::sys::image_file;
use crate::workload::Workload;
use crate::workload::passwd::{PASSWD, User};

/// The same workload as somebody else, by name or uid of the image's `/etc/passwd`. As root, too, where that is asked
/// for: without a capability, as every program of the workload.
pub(super) fn become_other(workload: &Workload, who: &str) -> Result<Workload, String> {
    // Now, not at boot: the workload may have made users meanwhile.
    let passwd = image_file::read(Path::new(PASSWD), image_file::MAX)
        .map_err(|error| format!("failed to read {PASSWD} for user `{}`: {error}", who.escape_debug()))?;
    let passwd = String::from_utf8_lossy(&passwd);
    let ids = find(&passwd, who)
        .ok_or_else(|| format!("there is no user `{}` in {PASSWD} of the sandbox", who.escape_debug()))?;
    Ok(Workload { user: User::find(&passwd, ids), ..workload.clone() })
}

/// A name is stronger than a number.
fn find(passwd: &str, who: &str) -> Option<WorkloadUser> {
    let users = || passwd.lines().filter_map(entry);
    let by_name = users().find(|(name, _)| *name == who);
    let by_uid = || users().find(|(_, ids)| who.parse() == Ok(ids.uid));
    by_name.or_else(by_uid).map(|(_, ids)| ids)
}

fn entry(line: &str) -> Option<(&str, WorkloadUser)> {
    let mut fields = line.split(':');
    let (name, _, uid, gid) = (fields.next()?, fields.next()?, fields.next()?, fields.next()?);
    let ids = WorkloadUser { uid: uid.parse().ok()?, gid: gid.parse().ok()? };
    (!name.is_empty()).then_some((name, ids))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn users_are_found_by_name_and_by_uid() {
        let passwd = "root:x:0:0:root:/root:/bin/bash\nbroken:x:5\n7:x:8:9::/:/bin/sh\nwww:x:33:34::/var/www:/bin/sh\n";
        for (who, uid, gid) in [("root", 0, 0), ("0", 0, 0), ("www", 33, 34), ("33", 33, 34), ("7", 8, 9)] {
            assert_eq!(find(passwd, who), Some(WorkloadUser { uid, gid }), "{who}");
        }
        for who in ["", "broken", "5", "nobody", "-1", "4294967296"] {
            assert_eq!(find(passwd, who), None, "{who}");
        }
    }
}
