//! The image's own words about the programs in it.

use std::io::ErrorKind;
use std::path::Path;

use proto::layout::IMAGE_CONFIG;

use super::{Fault, Machine};
use crate::sys::image_file;
use crate::workload::image::{FILE_MAX, Image};
use crate::workload::passwd::PASSWD;

pub(super) fn configure(machine: &mut Machine) -> Result<(), Fault> {
    let Some(spec) = &mut machine.spec else { return Ok(()) };
    // One byte more tells a file that is too long.
    let content = match image_file::read(Path::new(IMAGE_CONFIG), FILE_MAX as u64 + 1) {
        Ok(content) => content,
        Err(error) if error.kind() == ErrorKind::NotFound => return Ok(()),
        Err(error) => return Err(Fault::new(IMAGE_CONFIG, error)),
    };
    let passwd = image_file::read(Path::new(PASSWD), image_file::MAX).unwrap_or_default();
    let image = Image::parse(&content, &String::from_utf8_lossy(&passwd))
        .map_err(|wrong| Fault::new("the image's configuration", wrong))?;
    if let Some(not_followed) = image.apply(spec) {
        tracing::warn!("{not_followed}");
    }
    Ok(())
}
