//! Names for sandboxes that were given none.

const QUALITIES: [&str; 32] = [
    "able", "brave", "bright", "brisk", "calm", "clear", "crisp", "deft", "early", "fair", "fine", "fond", "fresh",
    "glad", "keen", "kind", "light", "lively", "loyal", "mild", "neat", "noble", "plain", "proud", "quick", "quiet",
    "ready", "sharp", "steady", "sunny", "swift", "warm",
];
const BEINGS: [&str; 32] = [
    "badger", "bear", "bee", "crane", "crow", "deer", "dove", "eagle", "falcon", "finch", "fox", "gecko", "hare",
    "heron", "ibis", "jay", "koala", "lark", "lynx", "marten", "mole", "newt", "otter", "owl", "panda", "raven",
    "robin", "seal", "stork", "swan", "tern", "wren",
];

/// A DNS label of at most 19 characters, such as `calm-otter-3f2a`, from random bits.
pub(crate) fn of_bits(bits: u64) -> String {
    let pick = |words: &[&'static str; 32], shift: u32| words[usize::try_from((bits >> shift) & 31).unwrap_or(0)];
    format!("{}-{}-{:04x}", pick(&QUALITIES, 0), pick(&BEINGS, 5), (bits >> 10) & 0xffff)
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;

    proptest! {
        #[test]
        fn names_are_short_labels(bits: u64) {
            let name = of_bits(bits);
            prop_assert!(name.len() <= 19, "{name}");
            prop_assert!(name.bytes().all(|b| b.is_ascii_lowercase() || b.is_ascii_digit() || b == b'-'));
            prop_assert!(!name.contains("--") && name.starts_with(|c: char| c.is_ascii_lowercase()));
        }
    }
}
