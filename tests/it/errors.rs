//! What callers are told when there is no answer (docs/errors.md).

use std::path::Path;

use token_wallet::domain::error::Failure;
use token_wallet::domain::reason;

#[test]
fn the_page_of_errors_lists_each_reason() {
    let page = Path::new(env!("CARGO_MANIFEST_DIR")).join("docs/errors.md");
    let page = std::fs::read_to_string(page).unwrap();
    let table = reason::table(Failure::MEANINGS);
    assert!(page.contains(&table), "the table in docs/errors.md must be:\n\n{table}");
}
