//! The services of the image, beside those of the boot spec.

use std::path::Path;

use proto::service::{IMAGE_DIRECTORY, listed};

use super::{Fault, Machine};
use crate::services::read_image;

pub(super) fn read(machine: &mut Machine) -> Result<(), Fault> {
    let Some(spec) = &mut machine.spec else { return Ok(()) };
    let given = std::mem::take(&mut spec.services);
    spec.services =
        read_image(Path::new(IMAGE_DIRECTORY), given).map_err(|mistakes| Fault::new("services", listed(&mistakes)))?;
    Ok(())
}
