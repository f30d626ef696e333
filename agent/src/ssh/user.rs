//! Another user than the sandbox's, for an exec that asks for one.

use std::path::Path;

use crate::sys::image_file;
use crate::workload::Workload;
use crate::workload::passwd::{self, PASSWD, User};

/// The same workload as somebody else, named as in `passwd::ids`. As root, too, where that is asked
/// for: without a capability, as every program of the workload.
pub(super) fn become_other(workload: &Workload, who: &str) -> Result<Workload, String> {
    // Now, not at boot: the workload may have made users meanwhile.
    let passwd = image_file::read(Path::new(PASSWD), image_file::MAX)
        .map_err(|error| format!("failed to read {PASSWD} for user `{}`: {error}", who.escape_debug()))?;
    let passwd = String::from_utf8_lossy(&passwd);
    let ids = passwd::ids(&passwd, who)?;
    Ok(Workload { user: User::find(&passwd, ids), ..workload.clone() })
}
