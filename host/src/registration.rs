//! How the SDK finds this gateway: `gateways/<name>/` and `active_gateway` below `$XDG_CONFIG_HOME/openshell`.
//!
//! Other products keep files of the same layout there. What this gateway did not write itself it never changes: a
//! directory is its own if the metadata in it names its state directory.

use std::fs;
use std::io::{self, Write as _};
use std::os::unix::fs::{DirBuilderExt as _, OpenOptionsExt as _};
use std::path::{Path, PathBuf};

use secrecy::ExposeSecret as _;
use serde::{Deserialize, Serialize};

use crate::atomic_file;
use crate::identity::tls::ClientIdentity;

const METADATA: &str = "metadata.json";
const ACTIVE: &str = "active_gateway";

/// What is registered.
pub struct Registration<'a> {
    /// `$XDG_CONFIG_HOME/openshell`
    pub registry: &'a Path,
    /// Name of the gateway.
    pub name: &'a str,
    /// Whose it is.
    pub state_dir: &'a Path,
    /// `host:port`
    pub address: std::net::SocketAddr,
    /// With what users come in; nothing where the listener speaks clear text.
    pub client: Option<&'a ClientIdentity>,
}

/// The names are those that the SDK reads, but for the last one.
#[derive(Debug, Serialize, Deserialize)]
struct Metadata {
    name: String,
    gateway_endpoint: String,
    auth_mode: String,
    openshell_state_dir: PathBuf,
}

/// Writes the registration, and makes it the active one where there is none.
///
/// # Errors
/// The name is taken by another product or gateway, or a file cannot be written; with the remedy.
pub fn register(registration: &Registration<'_>) -> Result<(), String> {
    let Registration { registry, name, state_dir, address, client } = registration;
    let dir = registry.join("gateways").join(name);
    let failed = |path: &Path, cause: io::Error| format!("failed to write {}: {cause}", path.display());
    if !ours(&dir, state_dir)? {
        return Err(format!(
            "{} belongs to another gateway or product and stays as it is; choose another name with openshell.gateway.name, \
             or remove it if it is not used any more",
            dir.display()
        ));
    }
    let mtls = dir.join("mtls");
    fs::DirBuilder::new().recursive(true).mode(0o700).create(&mtls).map_err(|cause| failed(&mtls, cause))?;
    let identity = client.map(|client| {
        [
            ("ca.crt", client.ca.as_str()),
            ("tls.crt", client.certificate.as_str()),
            ("tls.key", client.key.expose_secret()),
        ]
    });
    match identity {
        Some(files) => {
            for (file, content) in files {
                atomic_file::replace(&mtls.join(file), content.as_bytes())
                    .map_err(|cause| failed(&mtls.join(file), cause))?;
            }
        }
        // Of a time when it spoke TLS.
        None => fs::remove_dir_all(&mtls).map_err(|cause| failed(&mtls, cause))?,
    }
    let (scheme, auth_mode) = if client.is_some() { ("https", "mtls") } else { ("http", "none") };
    let metadata = Metadata {
        name: (*name).to_owned(),
        gateway_endpoint: format!("{scheme}://{address}"),
        auth_mode: auth_mode.to_owned(),
        openshell_state_dir: state_dir.to_path_buf(),
    };
    let json = serde_json::to_string_pretty(&metadata).unwrap_or_default();
    let path = dir.join(METADATA);
    atomic_file::replace(&path, json.as_bytes()).map_err(|cause| failed(&path, cause))?;
    let active = registry.join(ACTIVE);
    match fs::OpenOptions::new().write(true).create_new(true).mode(0o600).open(&active) {
        Ok(mut file) => file.write_all(name.as_bytes()).map_err(|cause| failed(&active, cause)),
        Err(cause) if cause.kind() == io::ErrorKind::AlreadyExists => Ok(()),
        Err(cause) => Err(failed(&active, cause)),
    }
}

/// Whether the directory is not there yet, or was written by a gateway of this state directory.
fn ours(dir: &Path, state_dir: &Path) -> Result<bool, String> {
    match fs::read_to_string(dir.join(METADATA)) {
        Ok(text) => {
            Ok(serde_json::from_str::<Metadata>(&text).is_ok_and(|found| found.openshell_state_dir == state_dir))
        }
        Err(cause) if cause.kind() == io::ErrorKind::NotFound => {
            // An attempt that was cut off has written no metadata; anything else is somebody's.
            let foreign =
                fs::read_dir(dir).is_ok_and(|entries| entries.flatten().any(|entry| entry.file_name() != "mtls"));
            Ok(!foreign)
        }
        Err(cause) => Err(format!("failed to read {}: {cause}", dir.join(METADATA).display())),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn identity() -> ClientIdentity {
        ClientIdentity { ca: "CA".into(), certificate: "CERT".into(), key: "KEY".to_owned().into() }
    }

    fn registration<'a>(
        registry: &'a Path,
        state_dir: &'a Path,
        client: Option<&'a ClientIdentity>,
    ) -> Registration<'a> {
        Registration { registry, name: "local", state_dir, address: "127.0.0.1:17670".parse().unwrap(), client }
    }

    #[test]
    fn written_again_by_its_own_gateway_only() {
        let temp = tempfile::tempdir().unwrap();
        let (registry, state) = (temp.path().join("openshell"), Path::new("/state/one"));
        let identity = identity();
        register(&registration(&registry, state, Some(&identity))).unwrap();
        register(&registration(&registry, state, Some(&identity))).unwrap();
        let dir = registry.join("gateways/local");
        assert_eq!(fs::read_to_string(registry.join(ACTIVE)).unwrap(), "local");
        assert_eq!(fs::read_to_string(dir.join("mtls/tls.key")).unwrap(), "KEY");
        let metadata = fs::read_to_string(dir.join(METADATA)).unwrap();
        assert!(metadata.contains("\"gateway_endpoint\": \"https://127.0.0.1:17670\""), "{metadata}");
        let refused = register(&registration(&registry, Path::new("/state/two"), Some(&identity))).unwrap_err();
        assert!(refused.contains("stays as it is"), "{refused}");
        assert_eq!(fs::read_to_string(dir.join(METADATA)).unwrap(), metadata);

        register(&registration(&registry, state, None)).unwrap();
        assert!(!dir.join("mtls").exists());
        assert!(fs::read_to_string(dir.join(METADATA)).unwrap().contains("\"http://127.0.0.1:17670\""));
    }

    #[test]
    fn another_product_s_files_stay_as_they_are() {
        let temp = tempfile::tempdir().unwrap();
        let registry = temp.path().join("openshell");
        let dir = registry.join("gateways/local");
        fs::create_dir_all(&dir).unwrap();
        fs::write(registry.join(ACTIVE), "other").unwrap();
        for (file, content) in [(METADATA, "{\"gateway_endpoint\": \"https://example\"}"), ("notes", "mine")] {
            fs::write(dir.join(file), content).unwrap();
            assert!(register(&registration(&registry, Path::new("/state"), None)).is_err());
            assert_eq!(fs::read_to_string(dir.join(file)).unwrap(), content);
            fs::remove_file(dir.join(file)).unwrap();
        }
        register(&registration(&registry, Path::new("/state"), None)).unwrap();
        assert_eq!(fs::read_to_string(registry.join(ACTIVE)).unwrap(), "other");
    }
}
