//! The console file of one VM: a ring that never grows and is readable after any crash.
//!
//! ```text
//! offset 0   8 bytes   magic "OSCONS1\n"
//! offset 8   8 bytes   bytes ever written, little endian
//! offset 16  1 MiB     byte number n of the console stands at 16 + n mod 1 MiB
//! ```
//!
//! The keeper writes the bytes first and the count after them. A reader that meets a half-made write sees at most
//! a few newest bytes in the place of the oldest ones.

use crate::budget::CONSOLE_RING;

const MAGIC: [u8; 8] = *b"OSCONS1\n";
/// Where the ring begins in the file.
pub const HEADER: usize = 16;

/// The header of a ring into which `total` bytes were written.
pub fn header(total: u64) -> [u8; HEADER] {
    let mut header = [0; HEADER];
    header[..8].copy_from_slice(&MAGIC);
    header[8..].copy_from_slice(&total.to_le_bytes());
    header
}

/// The offset in the file of byte number `total`, and how many bytes fit before the ring wraps.
pub fn place(total: u64) -> (u64, usize) {
    let at = (total % CONSOLE_RING as u64) as usize;
    ((HEADER + at) as u64, CONSOLE_RING - at)
}

/// The console's bytes in the order in which they were written, from the content of the file; nothing if it is
/// no ring.
pub fn unroll(file: &[u8]) -> Vec<u8> {
    let Some((header, ring)) = file.split_at_checked(HEADER) else { return Vec::new() };
    let (magic, total) = header.split_at(8);
    if magic != MAGIC {
        return Vec::new();
    }
    let total = u64::from_le_bytes(total.try_into().unwrap_or_default());
    if total <= CONSOLE_RING as u64 {
        return ring[..ring.len().min(total as usize)].to_vec();
    }
    let (newest, oldest) = ring.split_at(ring.len().min((total % CONSOLE_RING as u64) as usize));
    [oldest, newest].concat()
}

/// How many bytes were ever written to the ring of this file; nothing if it is no ring.
pub fn total(file: &[u8]) -> Option<u64> {
    let (magic, total) = file.get(..HEADER)?.split_at(8);
    (magic == MAGIC).then(|| u64::from_le_bytes(total.try_into().unwrap_or_default()))
}

/// What was written after byte number `from`, as far as the ring still has it. A ring that is shorter than that is
/// another boot's, and comes from its beginning.
pub fn since(file: &[u8], from: u64) -> Vec<u8> {
    let mut bytes = unroll(file);
    let total = total(file).unwrap_or_default();
    if let Some(new) = total.checked_sub(from) {
        let new = usize::try_from(new).unwrap_or(usize::MAX);
        bytes.drain(..bytes.len().saturating_sub(new));
    }
    bytes
}

#[cfg(test)]
mod tests {
    use super::*;

    /// What a keeper does, into memory.
    fn write(file: &mut Vec<u8>, total: &mut u64, mut bytes: &[u8]) {
        file.resize(file.len().max(HEADER), 0);
        while !bytes.is_empty() {
            let (at, room) = place(*total);
            let (now, rest) = bytes.split_at(bytes.len().min(room));
            file.resize(file.len().max(at as usize + now.len()), 0);
            file[at as usize..at as usize + now.len()].copy_from_slice(now);
            *total += now.len() as u64;
            bytes = rest;
        }
        file[..HEADER].copy_from_slice(&header(*total));
    }

    #[test]
    fn keeps_the_newest_bytes_in_order() {
        for chunk in [1usize << 10, 777, CONSOLE_RING, CONSOLE_RING - 1] {
            let (mut file, mut total, mut all) = (Vec::new(), 0, Vec::new());
            let mut stamp = 0u8;
            while all.len() < 3 * CONSOLE_RING {
                let bytes: Vec<u8> = (0..chunk).map(|i| stamp.wrapping_add((i / 7) as u8)).collect();
                stamp = stamp.wrapping_add(31);
                write(&mut file, &mut total, &bytes);
                all.extend(bytes);
                assert_eq!(file.len(), HEADER + all.len().min(CONSOLE_RING));
            }
            assert_eq!(unroll(&file), all[all.len() - CONSOLE_RING..], "chunks of {chunk}");
        }
    }

    #[test]
    fn what_is_new_is_told_from_what_was_read() {
        let (mut file, mut count) = (Vec::new(), 0);
        write(&mut file, &mut count, b"hello ");
        assert_eq!((total(&file), since(&file, 0)), (Some(6), b"hello ".to_vec()));
        write(&mut file, &mut count, b"world");
        assert_eq!(since(&file, 6), b"world");
        assert_eq!(since(&file, 11), b"");
        // Of another boot, which has not said as much yet.
        assert_eq!(since(&file, 12), b"hello world");
        write(&mut file, &mut count, &vec![b'x'; CONSOLE_RING]);
        assert_eq!(since(&file, 6).len(), CONSOLE_RING, "what is left of it");
        assert_eq!((total(b"no ring"), since(b"no ring", 0)), (None, vec![]));
    }

    #[test]
    fn short_and_foreign_files_are_empty() {
        assert!(unroll(b"").is_empty());
        assert!(unroll(b"something else altogether").is_empty());
        assert!(unroll(&header(5)).is_empty());
        let mut cut = header(10).to_vec();
        cut.extend(b"abc");
        assert_eq!(unroll(&cut), b"abc");
    }
}
