//! Compiles proto/ in pure Rust (protox), so that a build needs no protoc.

use std::path::{Path, PathBuf};

use prost::Message as _;

/// Messages that carry a secret: their `Debug` is written by hand in src/proto.rs.
const WITHOUT_DEBUG: [&str; 11] = [
    ".tokenwallet.v1.GetAccessTokenRequest",
    ".tokenwallet.v1.GetAccessTokenResponse",
    ".tokenwallet.v1.AuthorizationRequired",
    ".tokenwallet.v1.StartLinkResponse",
    ".tokenwallet.v1.StartReauthorizationResponse",
    ".tokenwallet.v1.CompleteLinkRequest",
    ".tokenwallet.v1.CompleteLinkRequest.proof",
    ".tokenwallet.v1.CreateProviderRequest",
    ".tokenwallet.v1.CreateProviderSecretRequest",
    ".tokenwallet.v1.CreateApiClientResponse",
    ".tokenwallet.v1.ApiKey",
];

fn main() -> Result<(), Box<dyn std::error::Error>> {
    println!("cargo:rerun-if-changed=proto");
    println!("cargo:rerun-if-changed=migrations");

    let mut files: Vec<PathBuf> = std::fs::read_dir("proto/tokenwallet/v1")?
        .map(|entry| entry.map(|entry| entry.path()))
        .collect::<Result<_, _>>()?;
    files.retain(|path| path.extension().is_some_and(|extension| extension == "proto"));
    files.sort();

    let descriptors = protox::compile(&files, ["proto"])?;
    #[expect(clippy::disallowed_methods, reason = "how cargo tells a build script where to write")]
    let out = std::env::var("OUT_DIR")?;
    std::fs::write(Path::new(&out).join("descriptors.bin"), descriptors.encode_to_vec())?;

    let mut config = tonic_prost_build::Config::new();
    config.skip_debug(WITHOUT_DEBUG);
    tonic_prost_build::configure()
        .extern_path(".google.rpc.Status", "::tonic_types::Status")
        .compile_fds_with_config(descriptors, config)?;
    Ok(())
}
