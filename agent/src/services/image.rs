//! The declarations of the image.

use std::fs;
use std::io::ErrorKind;
use std::path::Path;

use proto::service::{EXTENSION, FILE_MAX, Mistake, SERVICES_MAX, Scope, Service, order, parse};

use crate::sys::image_file;

/// The services of the image's `directory` and those that were given at create, in an order in which they can be
/// started.
///
/// # Errors
/// All mistakes in all files: nothing is started where one is wrong.
pub fn read(directory: &Path, given: Vec<Service>) -> Result<Vec<Service>, Vec<Mistake>> {
    let mut mistakes = vec![];
    let mut services = given;
    for file in files(directory)? {
        match read_one(&file) {
            Ok(service) => services.push(service),
            Err(mistake) => mistakes.push(mistake),
        }
    }
    if !mistakes.is_empty() {
        return Err(mistakes);
    }
    let order = order(&services, Scope::Whole)?;
    let mut services: Vec<Option<Service>> = services.into_iter().map(Some).collect();
    Ok(order.into_iter().filter_map(|index| services[index].take()).collect())
}

/// By name. Other files than declarations may be there, too; a directory that is not there has none.
fn files(directory: &Path) -> Result<Vec<String>, Vec<Mistake>> {
    let unreadable = |message: String| vec![Mistake { file: directory.display().to_string(), line: None, message }];
    let entries = match fs::read_dir(directory) {
        Err(error) if error.kind() == ErrorKind::NotFound => return Ok(vec![]),
        other => other.map_err(|error| unreadable(format!("cannot be listed: {error}")))?,
    };
    let mut files = vec![];
    for entry in entries {
        let entry = entry.map_err(|error| unreadable(format!("cannot be listed: {error}")))?;
        let path = entry.path().display().to_string();
        if path.ends_with(EXTENSION) {
            files.push(path);
        }
        if files.len() > SERVICES_MAX {
            return Err(unreadable(format!("more than {SERVICES_MAX} services")));
        }
    }
    files.sort();
    Ok(files)
}

fn read_one(file: &str) -> Result<Service, Mistake> {
    let of_file = |message: String| Mistake { file: file.to_owned(), line: None, message };
    let bytes = image_file::read(Path::new(file), FILE_MAX as u64 + 1)
        .map_err(|error| of_file(format!("cannot be read: {error}")))?;
    let text = String::from_utf8(bytes).map_err(|_| of_file("not UTF-8".to_owned()))?;
    parse(file, &text)
}

#[cfg(test)]
mod tests {
    use super::*;

    fn directory(files: &[(&str, &str)]) -> tempfile::TempDir {
        let directory = tempfile::tempdir().unwrap();
        for (name, text) in files {
            fs::write(directory.path().join(name), text).unwrap();
        }
        directory
    }

    const PLAIN: &str = "command = [\"a\"]\n";

    #[test]
    fn those_of_the_image_and_those_given_are_one_graph() {
        let needs_db = format!("{PLAIN}requires = [\"db\"]");
        let image = directory(&[("db.toml", PLAIN), ("web.toml", &needs_db), ("README", "not one")]);
        let given = vec![parse("app.toml", &format!("{PLAIN}after = [\"image:web\"]")).unwrap()];
        let services = read(image.path(), given.clone()).unwrap();
        let names: Vec<&str> = services.iter().map(|service| service.name.as_str()).collect();
        assert_eq!(names, ["db", "web", "app"]);
        assert_eq!(read(&image.path().join("none"), vec![]).unwrap(), []);
        let twice = read(image.path(), vec![parse("db.toml", PLAIN).unwrap()]).unwrap_err();
        assert!(twice[0].message.contains("`db` is declared in db.toml, too"), "{twice:?}");
    }

    #[test]
    fn every_file_that_cannot_be_used_is_named() {
        let image = directory(&[("a.toml", "command = 1"), ("b.toml", PLAIN)]);
        std::os::unix::fs::symlink("/dev/zero", image.path().join("c.toml")).unwrap();
        fs::write(image.path().join("d.toml"), b"\xff").unwrap();
        let text = proto::service::listed(&read(image.path(), vec![]).unwrap_err());
        for words in ["a.toml:1: ", "c.toml: cannot be read", "d.toml: not UTF-8"] {
            assert!(text.contains(words), "{text}");
        }
        assert!(!text.contains("b.toml"), "{text}");
    }
}
