//! What it costs to start a program here.

use std::process::Command;
use std::time::Instant;

const TIMES: u32 = 20;

/// Prints the microseconds that one took on average.
pub(crate) fn measure() {
    let began = Instant::now();
    for _ in 0..TIMES {
        let status = Command::new("/bin/true").env_clear().status().expect("run /bin/true");
        assert!(status.success(), "/bin/true ended: {status}");
    }
    println!("{}", (began.elapsed() / TIMES).as_micros());
}
