//! Language and time zone of the image, where it names them in files that no program reads by itself.

use std::collections::BTreeMap;
use std::path::Path;

use crate::sys::image_file;

/// Of systemd's distributions, and of Debian's. The first that is there counts.
const LOCALE_FILES: [&str; 2] = ["etc/locale.conf", "etc/default/locale"];
/// The C library reads this one by itself.
const LOCALTIME: &str = "etc/localtime";
const TIMEZONE: &str = "etc/timezone";
/// No name of a zone or a locale is longer.
const NAME_MAX: usize = 64;

/// As variables, for whoever does not choose others. Empty where the image says nothing.
pub fn of_image(root: &Path) -> BTreeMap<String, String> {
    let text = |file: &str| image_file::read(&root.join(file), image_file::MAX).ok();
    let locale = LOCALE_FILES.iter().find_map(|file| text(file)).unwrap_or_default();
    let mut variables = locale_variables(&String::from_utf8_lossy(&locale));
    // A link, mostly, and not read here.
    if root.join(LOCALTIME).symlink_metadata().is_err()
        && let Some(zone) = text(TIMEZONE).and_then(|zone| zone_name(&String::from_utf8_lossy(&zone)))
    {
        variables.insert("TZ".to_owned(), zone);
    }
    variables
}

/// Of lines `NAME=value`, quoted or not, those that are about languages.
fn locale_variables(text: &str) -> BTreeMap<String, String> {
    let pairs = text.lines().filter_map(|line| line.trim().split_once('='));
    let about_languages = pairs.filter(|(name, _)| matches!(*name, "LANG" | "LANGUAGE") || name.starts_with("LC_"));
    let sound = about_languages.filter_map(|(name, value)| {
        let value = value.trim_matches(['"', '\'']);
        let plain = |c: char| c.is_ascii_alphanumeric() || "_.@-:".contains(c);
        let is_sound = !value.is_empty() && value.len() <= NAME_MAX && value.chars().all(plain);
        (is_sound && name.len() <= NAME_MAX).then(|| (name.to_owned(), value.to_owned()))
    });
    sound.collect()
}

/// `Europe/Berlin`: a name below the zone files, never a path to others.
fn zone_name(text: &str) -> Option<String> {
    let name = text.trim();
    let plain = |c: char| c.is_ascii_alphanumeric() || "_+-/".contains(c);
    (!name.is_empty() && name.len() <= NAME_MAX && !name.starts_with('/') && name.chars().all(plain))
        .then(|| name.to_owned())
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn an_image_names_its_language_and_its_zone() {
        let root = tempfile::tempdir().unwrap();
        let write = |file: &str, text: &str| {
            let path = root.path().join(file);
            std::fs::create_dir_all(path.parent().unwrap()).unwrap();
            std::fs::write(path, text).unwrap();
        };
        let found = || of_image(root.path()).into_iter().map(|(name, value)| format!("{name}={value}"));
        assert_eq!(found().count(), 0);
        write("etc/default/locale", "#  comment\nLANG=\"de_DE.UTF-8\"\nLC_TIME=C\nPATH=/evil\nLC_ALL=$(evil)\n");
        write("etc/timezone", "Europe/Berlin\n");
        assert_eq!(found().collect::<Vec<_>>(), ["LANG=de_DE.UTF-8", "LC_TIME=C", "TZ=Europe/Berlin"]);
        write("etc/locale.conf", "LANG=fr_FR.UTF-8\n");
        std::os::unix::fs::symlink("/usr/share/zoneinfo/UTC", root.path().join("etc/localtime")).unwrap();
        assert_eq!(found().collect::<Vec<_>>(), ["LANG=fr_FR.UTF-8"]);
    }

    #[test]
    fn a_zone_is_no_path() {
        assert_eq!(zone_name(" Etc/GMT+1\n").as_deref(), Some("Etc/GMT+1"));
        for text in ["", "/etc/shadow", "../../etc/shadow", "a b", &"z".repeat(65)] {
            assert_eq!(zone_name(text), None, "{text:?}");
        }
    }
}
