//! Stores that are damaged, newer, or not a gateway's.

use std::fs;

use crate::bench::{Bench, block_on};

/// Places in the header of an SQLite file.
const USER_VERSION: usize = 60;
const APPLICATION_ID: usize = 68;

#[test]
fn a_store_that_cannot_be_used_is_refused_and_left_as_it_was() {
    let bench = Bench::new();
    block_on(bench.serves_once());
    let file = bench.state().join("gateway.db");
    let good = fs::read(&file).expect("read the store");
    assert!(good.len() > 4096, "an orderly end leaves a whole file: {} bytes", good.len());
    let changed = |at: usize, bytes: &[u8]| {
        let mut content = good.clone();
        content[at..at + bytes.len()].copy_from_slice(bytes);
        content
    };
    let damage = vec![0xff; good.len() - 4096];
    for (what, content, code, words) in [
        ("no SQLite file", vec![b'x'; 8192], 44, ["is not a gateway database", "move it away"]),
        ("somebody else's", changed(APPLICATION_ID, b"abcd"), 44, ["is not a gateway database", "state_dir"]),
        (
            "a later version's",
            changed(USER_VERSION, &[0, 0, 0, 9]),
            45,
            ["has schema 9", "use the gateway that wrote it"],
        ),
        ("damaged", changed(4096, &damage), 44, ["is damaged", "restore it from a copy"]),
    ] {
        fs::write(&file, &content).expect("write");
        let line = bench.gateway().refused(code, &words);
        assert!(line.contains(&file.display().to_string()), "{what}: {line}");
        assert!(fs::read(&file).expect("read") == content, "{what}: the file was changed");
        // What SQLite makes beside a file is empty, and no gateway misses it.
        for beside in ["gateway.db-wal", "gateway.db-shm"] {
            drop(fs::remove_file(bench.state().join(beside)));
        }
    }
    fs::write(&file, good).expect("put it back");
    block_on(bench.serves_once());
}
