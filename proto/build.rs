//! Compiles the `.proto` files with protox, so that no `protoc` is needed, and keeps the descriptor set:
//! the gateway's guard table is tested against it.

#![forbid(unsafe_code)]

use prost::Message as _;

/// Messages with a token or a secret in them.
const SECRETIVE: [&str; 7] = [
    "openshell.v1.RefreshSandboxTokenResponse",
    "openshell.v1.IssueSandboxTokenResponse",
    "openshell.v1.GetSandboxProviderEnvironmentResponse",
    "openshell.v1.TcpForwardInit",
    "openshell.v1.CreateSshSessionResponse",
    "openshell.v1.RevokeSshSessionRequest",
    "openshell.vm.v1.SetSecretRequest",
];

fn main() -> Result<(), Box<dyn std::error::Error>> {
    let files = ["openshell/v1/openshell.proto", "openshell/vm/v1/vm.proto"];
    println!("cargo::rerun-if-changed=openshell");
    let descriptors = protox::compile(files, ["."])?;
    let out = std::path::PathBuf::from(std::env::var("OUT_DIR")?);
    std::fs::write(out.join("descriptors.bin"), descriptors.encode_to_vec())?;
    tonic_prost_build::configure()
        .build_transport(false)
        .codec_path("crate::codec::SmallBuffers")
        .bytes(".openshell.v1.RelayFrame")
        .bytes(".openshell.v1.TcpForwardFrame")
        // Their own Debug leaves out what nobody may print.
        .skip_debug(SECRETIVE)
        .compile_fds(descriptors)?;
    Ok(())
}
