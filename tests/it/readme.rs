//! The README says what is.

use std::path::Path;

use token_wallet::config::keys;

#[test]
fn the_readme_explains_every_configuration_key() {
    let readme = std::fs::read_to_string(Path::new(env!("CARGO_MANIFEST_DIR")).join("README.md")).unwrap();
    let table = keys::table();
    assert!(readme.contains(&table), "the README's configuration table must be:\n\n{table}");
}
