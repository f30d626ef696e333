//! The frames of a relay, and their [`flow`].

pub mod flow;

use prost::bytes::Bytes;

use crate::openshell::v1::RelayFrame;
use crate::openshell::v1::relay_frame::Payload;

/// HTTP/2 implementations take many unread DATA frames shorter than this for a flood and close the connection
/// (`too_many_data_frames`; h2 from 0.4.16 on). A peer that is stopped, or a reader that pauses, leaves them unread.
const SHORT: usize = 256;

static PADDING: [u8; SHORT] = [0; SHORT];

/// The frame that carries `data`, padded where its HTTP/2 frame would be short.
pub fn data_frame(data: Bytes) -> RelayFrame {
    let padding = Bytes::from_static(&PADDING[..SHORT.saturating_sub(data.len())]);
    RelayFrame { payload: Some(Payload::Data(data)), padding, ..RelayFrame::default() }
}

/// A frame that carries no data, as long as one that does.
pub(crate) fn without_data(frame: RelayFrame) -> RelayFrame {
    RelayFrame { padding: Bytes::from_static(&PADDING), ..frame }
}

#[cfg(test)]
mod tests {
    use super::*;
    use prost::Message as _;

    #[test]
    fn no_data_frame_is_short_and_no_byte_is_added_to_the_data() {
        for len in [0, 1, 127, 128, 255, 256, 5000] {
            let data = Bytes::from(vec![7; len]);
            let encoded = data_frame(data.clone()).encode_to_vec();
            assert!((SHORT..SHORT + len + 16).contains(&encoded.len()), "{len}: {}", encoded.len());
            let decoded = RelayFrame::decode(&*encoded).expect("a frame");
            assert_eq!(decoded.payload, Some(Payload::Data(data)));
        }
    }
}
