//! Lines out of bytes.

use proto::log::MESSAGE_MAX;

/// The line that is not complete yet.
#[derive(Debug, Default)]
pub(super) struct Lines {
    begun: Vec<u8>,
}

impl Lines {
    /// Gives each complete line to `line`, and whether it goes on in the next one.
    pub(super) fn push(&mut self, bytes: &[u8], line: &mut dyn FnMut(&str, bool)) {
        for part in bytes.split_inclusive(|byte| *byte == b'\n') {
            let (text, ends) = match part.split_last() {
                Some((b'\n', text)) => (text, true),
                _ => (part, false),
            };
            self.extend(text, line);
            if ends {
                self.finish_line(line);
            }
        }
    }

    /// What has begun is a line, if it is anything.
    pub(super) fn finish(&mut self, line: &mut dyn FnMut(&str, bool)) {
        if !self.begun.is_empty() {
            self.finish_line(line);
        }
    }

    fn extend(&mut self, mut text: &[u8], line: &mut dyn FnMut(&str, bool)) {
        while self.begun.len() + text.len() > MESSAGE_MAX {
            let (now, later) = text.split_at(MESSAGE_MAX - self.begun.len());
            self.begun.extend_from_slice(now);
            text = later;
            let rest = self.begun.split_off(whole_characters(&self.begun));
            emit(&self.begun, true, line);
            self.begun = rest;
        }
        self.begun.extend_from_slice(text);
    }

    fn finish_line(&mut self, line: &mut dyn FnMut(&str, bool)) {
        // A terminal ends lines with two characters.
        let text = self.begun.strip_suffix(b"\r").unwrap_or(&self.begun);
        emit(text, false, line);
        // An idle program costs no buffer.
        self.begun = Vec::new();
    }
}

/// How many bytes there are without a character at the end of which a part is missing.
fn whole_characters(bytes: &[u8]) -> usize {
    let tail = bytes.iter().rev().take(3).position(|byte| *byte & 0xc0 != 0x80);
    let Some(back) = tail.map(|back| back + 1) else { return bytes.len() };
    let begin = bytes.len() - back;
    let length = match bytes[begin] {
        0xc0..=0xdf => 2,
        0xe0..=0xef => 3,
        0xf0..=0xff => 4,
        _ => 1,
    };
    if length > back { begin } else { bytes.len() }
}

/// What is not UTF-8 becomes replacement characters, which are longer.
fn emit(bytes: &[u8], continues: bool, line: &mut dyn FnMut(&str, bool)) {
    let text = String::from_utf8_lossy(bytes);
    let mut rest = &*text;
    while rest.len() > MESSAGE_MAX {
        let (now, later) = rest.split_at(rest.floor_char_boundary(MESSAGE_MAX));
        line(now, true);
        rest = later;
    }
    line(rest, continues);
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;

    fn split(pieces: &[&[u8]]) -> Vec<(String, bool)> {
        let (mut lines, mut split) = (vec![], Lines::default());
        let mut line = |text: &str, continues| lines.push((text.to_owned(), continues));
        for piece in pieces {
            split.push(piece, &mut line);
        }
        split.finish(&mut line);
        lines
    }

    #[test]
    fn lines_end_where_they_end() {
        let whole = |text: &str| (text.to_owned(), false);
        assert_eq!(split(&[b"a\n\nb\r\n", b"c", b"d\n", b"e"]), ["a", "", "b", "cd", "e"].map(whole));
        assert!(split(&[b""]).is_empty());
        // Steps of a progress bar are one line, and its control characters are kept.
        assert_eq!(split(&[b"1%\r2%\r\x1b[1m3%\x00\n"]), [whole("1%\r2%\r\x1b[1m3%\0")]);
    }

    #[test]
    fn the_longest_line_is_whole_and_a_longer_one_is_marked() {
        let longest = "x".repeat(MESSAGE_MAX);
        assert_eq!(split(&[longest.as_bytes(), b"\n"]), [(longest.clone(), false)]);
        assert_eq!(split(&[longest.as_bytes(), b"y\n"]), [(longest.clone(), true), ("y".to_owned(), false)]);
        // A character is not cut in two.
        let odd = format!("x{}", "ü".repeat(MESSAGE_MAX));
        let pieces = split(&[odd.as_bytes()]);
        assert_eq!(pieces.iter().map(|(text, _)| text.as_str()).collect::<String>(), odd);
    }

    proptest! {
        #[test]
        fn nothing_is_longer_and_nothing_is_lost(
            pieces in proptest::collection::vec(proptest::collection::vec(any::<u8>(), 0..6000), 0..6),
        ) {
            let borrowed: Vec<&[u8]> = pieces.iter().map(Vec::as_slice).collect();
            let mut text = String::new();
            for (line, continues) in split(&borrowed) {
                prop_assert!(line.len() <= MESSAGE_MAX);
                text.push_str(&line);
                if !continues {
                    text.push('\n');
                }
            }
            let whole = pieces.concat();
            // Where no byte is invalid, all of them come out.
            if let Ok(whole) = std::str::from_utf8(&whole) {
                let plain = |text: &str| text.replace('\r', "").trim_end_matches('\n').to_owned();
                prop_assert_eq!(plain(&text), plain(whole));
            }
        }
    }
}
