//! Pages of lists: sizes clamped, tokens opaque and bound to their list, filter and caller.

use data_encoding::BASE64URL_NOPAD;
use sha2::{Digest as _, Sha256};

use crate::domain::error::Failure;
use crate::domain::ids::ApiClientId;

const USUAL_SIZE: u32 = 50;
const LARGEST_SIZE: u32 = 200;

/// A page that was asked for.
pub(super) struct Page {
    size: u32,
    /// Hash of the list, its filter and its caller.
    list: [u8; 16],
    after: Option<String>,
}

impl Page {
    /// Reads a page of `list` (its name and filter) for `client`. A token is the position where the page before
    /// ended, and a check that it was ours and for this list: a position is not a secret, and permits are asked anew.
    pub(super) fn read(client: ApiClientId, list: &[&str], size: i32, token: &str) -> Result<Self, Failure> {
        let size = match u32::try_from(size) {
            Ok(0) => USUAL_SIZE,
            Ok(size) => size.min(LARGEST_SIZE),
            Err(_) => return Err(Failure::field("page_size", "must not be negative")),
        };
        let mut hash = Sha256::new();
        for part in [client.to_string().as_str()].iter().chain(list) {
            hash.update(part.len().to_be_bytes());
            hash.update(part.as_bytes());
        }
        let list = first_half(hash);
        let mut page = Self { size, list, after: None };
        if !token.is_empty() {
            let after = page
                .open(token)
                .ok_or_else(|| Failure::field("page_token", "must be a next_page_token of this list"))?;
            page.after = Some(after);
        }
        Ok(page)
    }

    /// What ended the page before, parsed.
    pub(super) fn after<T: std::str::FromStr>(&self) -> Result<Option<T>, Failure> {
        let parsed = self.after.as_deref().map(str::parse).transpose();
        parsed.map_err(|_| Failure::field("page_token", "must be a next_page_token of this list"))
    }

    /// The most rows of the page.
    pub(super) const fn size(&self) -> u32 {
        self.size
    }

    /// One more than fits the page, to see whether another follows.
    pub(super) const fn limit(&self) -> u32 {
        self.size + 1
    }

    /// Cuts the rows to the page and answers the next page's token, empty on the last one.
    pub(super) fn cut<T>(&self, rows: &mut Vec<T>, key: impl Fn(&T) -> String) -> String {
        let size = self.size as usize;
        if rows.len() <= size {
            return String::new();
        }
        rows.truncate(size);
        rows.last().map(|last| self.token(&key(last))).unwrap_or_default()
    }

    /// The token of the page that begins behind `after`.
    pub(super) fn token(&self, after: &str) -> String {
        BASE64URL_NOPAD.encode(&[self.check(after).as_slice(), after.as_bytes()].concat())
    }

    fn open(&self, token: &str) -> Option<String> {
        let bytes = BASE64URL_NOPAD.decode(token.as_bytes()).ok()?;
        let (check, after) = bytes.split_at_checked(16)?;
        let after = std::str::from_utf8(after).ok()?;
        (self.check(after) == check).then(|| after.to_owned())
    }

    fn check(&self, after: &str) -> [u8; 16] {
        first_half(Sha256::new().chain_update(self.list).chain_update(after))
    }
}

fn first_half(hash: Sha256) -> [u8; 16] {
    let mut half = [0; 16];
    half.copy_from_slice(&hash.finalize()[..16]);
    half
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::clock::Timestamp;

    #[test]
    fn a_token_continues_its_own_list_only() {
        let (client, other) =
            (ApiClientId::new(Timestamp::from_millis(1)), ApiClientId::new(Timestamp::from_millis(2)));
        let page = Page::read(client, &["accounts", "alice"], 2, "").ok().unwrap();
        let mut rows = vec!["a", "b", "c"];
        let token = page.cut(&mut rows, |row| (*row).to_owned());
        assert_eq!(rows, ["a", "b"]);
        let next = Page::read(client, &["accounts", "alice"], 2, &token).ok().unwrap();
        assert_eq!(next.after::<String>(), Ok(Some("b".to_owned())));
        assert!(Page::read(client, &["accounts", "bob"], 2, &token).is_err());
        assert!(Page::read(client, &["accounts", "alice", ""], 2, &token).is_err());
        assert!(Page::read(other, &["accounts", "alice"], 2, &token).is_err());
        assert!(Page::read(client, &["accounts", "alice"], 2, "Zm9yZ2Vk").is_err());
        assert_eq!(page.cut(&mut vec!["a", "b"], |row| (*row).to_owned()), "");
    }

    #[test]
    fn sizes_are_clamped() {
        let limit =
            |size| Page::read(ApiClientId::new(Timestamp::from_millis(1)), &[], size, "").map(|page| page.limit());
        assert_eq!((limit(0), limit(7), limit(i32::MAX)), (Ok(51), Ok(8), Ok(201)));
        assert!(limit(-1).is_err());
    }
}
