//! Keys that end an attachment and leave the process running.

use std::str::FromStr;

/// A sequence of bytes as a terminal sends them; empty where there is none.
#[derive(Debug, Clone, PartialEq, Eq, Default)]
pub(crate) struct DetachKeys(Vec<u8>);

impl FromStr for DetachKeys {
    type Err = String;

    fn from_str(text: &str) -> Result<Self, String> {
        if text == "none" {
            return Ok(Self::default());
        }
        let key = |key: &str| match (key.as_bytes(), key.strip_prefix("ctrl-").map(str::as_bytes)) {
            (_, Some([letter @ (b'a'..=b'z')])) => Ok(letter - b'a' + 1),
            (_, Some([sign @ (b'@' | b'['..=b'_')])) => Ok(sign - b'@'),
            ([one @ 0x21..=0x7e], _) => Ok(*one),
            _ => Err("write keys like ctrl-p,ctrl-q, or none".to_owned()),
        };
        text.split(',').map(key).collect::<Result<_, _>>().map(Self)
    }
}

/// Looks for the keys in what is typed. What may be their beginning is kept back until the next key tells.
#[derive(Debug)]
pub(crate) struct Watcher {
    keys: DetachKeys,
    pending: Vec<u8>,
}

impl Watcher {
    pub(crate) fn new(keys: DetachKeys) -> Self {
        Self { keys, pending: vec![] }
    }

    /// What is to be passed on of `typed`, and whether the keys were all typed: what came after them is dropped.
    pub(crate) fn pass(&mut self, typed: &[u8]) -> (Vec<u8>, bool) {
        if self.keys.0.is_empty() {
            return (typed.to_vec(), false);
        }
        let mut passed = Vec::with_capacity(typed.len());
        for byte in typed {
            self.pending.push(*byte);
            while !self.keys.0.starts_with(&self.pending) {
                passed.push(self.pending.remove(0));
            }
            if self.pending.len() == self.keys.0.len() {
                self.pending.clear();
                return (passed, true);
            }
        }
        (passed, false)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn watcher(keys: &str) -> Watcher {
        Watcher::new(keys.parse().unwrap())
    }

    #[test]
    fn keys_are_written_as_people_name_them() {
        assert_eq!("ctrl-p,ctrl-q".parse(), Ok(DetachKeys(vec![16, 17])));
        assert_eq!("ctrl-],x".parse(), Ok(DetachKeys(vec![29, b'x'])));
        assert_eq!("none".parse(), Ok(DetachKeys::default()));
        for wrong in ["", "ctrl-", "ctrl-P", "ctrl-pp", "pq", "ctrl-p,", "ü"] {
            assert!(wrong.parse::<DetachKeys>().is_err(), "{wrong}");
        }
    }

    #[test]
    fn only_the_whole_sequence_detaches_and_nothing_else_is_lost() {
        let mut keys = watcher("ctrl-p,ctrl-q");
        assert_eq!(keys.pass(b"ls\x10"), (b"ls".to_vec(), false), "kept back");
        assert_eq!(keys.pass(b"x"), (b"\x10x".to_vec(), false));
        assert_eq!(keys.pass(b"\x10\x10"), (b"\x10".to_vec(), false));
        assert_eq!(keys.pass(b"\x11gone"), (vec![], true));
        let mut repeated = watcher("a,a,b");
        assert_eq!(repeated.pass(b"aaab"), (b"a".to_vec(), true));
        assert_eq!(watcher("none").pass(b"\x10\x11"), (b"\x10\x11".to_vec(), false));
    }
}
