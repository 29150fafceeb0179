use super::*;
use crate::domain::ids::{FlowId, InstanceId};
use crate::domain::provider::{Lifetime, TokenAnswer};
use crate::domain::secret::{AccessToken, RefreshToken};
use crate::domain::spool::ExchangeAnswer;
use crate::vault::RootKey;

const NOW: Timestamp = Timestamp::from_millis(1_800_000_000_000);

struct Home {
    folder: tempfile::TempDir,
    whose: Whose,
    vault: Arc<Vault>,
}

impl Home {
    fn new() -> Self {
        let instance = InstanceId::new(NOW);
        let vault = vault(instance);
        Self { folder: tempfile::tempdir().unwrap(), whose: Whose { instance, replica: None }, vault }
    }

    fn open(&self) -> (Spool, Vec<SpoolRecord>) {
        Spool::open(self.folder.path(), self.whose, Arc::clone(&self.vault), NOW).unwrap()
    }

    fn file(&self) -> PathBuf {
        self.folder.path().join("0").join(FILE)
    }
}

fn vault(instance: InstanceId) -> Arc<Vault> {
    Arc::new(Vault::create(&RootKey::generate(), instance, NOW).unwrap().0)
}

fn entry(token: &str) -> Entry {
    let answer = TokenAnswer {
        access_token: AccessToken::new(token),
        refresh_token: Some(RefreshToken::new("planted-refresh-token")),
        token_type: "Bearer".to_owned(),
        lifetime: Lifetime::Endless,
        scopes: None,
        metadata: [].into(),
    };
    Entry::Exchange(ExchangeAnswer { flow: FlowId::new(NOW), answer })
}

fn entries(leftovers: Vec<SpoolRecord>) -> Vec<Entry> {
    leftovers.into_iter().map(|record| record.entry).collect()
}

#[tokio::test]
async fn s2_what_was_spooled_is_found_by_the_next_life_sealed_until_then() {
    let home = Home::new();
    let (spool, leftovers) = home.open();
    assert!(leftovers.is_empty());
    let all: Vec<_> = (0..300).map(|number| entry(&format!("planted-access-token-{number}"))).collect();
    let appending = futures_util::future::join_all(all.iter().map(|entry| spool.append(entry)));
    let mut slips: Vec<_> = appending.await.into_iter().map(Result::unwrap).collect();
    spool.check().await.unwrap();
    slips.remove(7).done();
    spool.close().await;
    assert!(matches!(spool.append(&all[0]).await, Err(SpoolError::Closed)));
    assert!(matches!(spool.check().await, Err(SpoolError::Closed)));
    let bytes = std::fs::read(home.file()).unwrap();
    assert!(!bytes.windows(7).any(|part| part == b"planted"));
    let (again, leftovers) = home.open();
    assert_eq!(again.replica(), spool.replica());
    let mut expected = all;
    expected.remove(7);
    assert!(entries(leftovers) == expected);
}

#[tokio::test]
async fn s6_a_record_that_does_not_open_stays_on_disk_and_the_rest_is_given() {
    let mut home = Home::new();
    let (spool, _) = home.open();
    let ours = entry("ours");
    drop(spool.append(&ours).await.unwrap());
    spool.close().await;
    // Another key's.
    let vault = std::mem::replace(&mut home.vault, vault(home.whose.instance));
    let (stranger, leftovers) = home.open();
    assert!(leftovers.is_empty());
    let theirs = entry("theirs");
    drop(stranger.append(&theirs).await.unwrap());
    stranger.close().await;
    let (stranger, leftovers) = home.open();
    assert!(entries(leftovers) == [theirs]);
    stranger.close().await;
    home.vault = vault;
    assert!(entries(home.open().1) == [ours]);
}

#[tokio::test]
async fn two_spools_share_a_directory() {
    let home = Home::new();
    let ((one, _), (other, _)) = (home.open(), home.open());
    assert!(one.replica() != other.replica());
    drop(one.append(&entry("one")).await.unwrap());
    one.close().await;
    let (again, leftovers) = home.open();
    assert_eq!((again.replica(), leftovers.len()), (one.replica(), 1));
}

#[tokio::test]
async fn what_others_left_in_folders_that_nobody_has_is_found_under_their_name() {
    let home = Home::new();
    let ((one, _), (other, _), (third, _)) = (home.open(), home.open(), home.open());
    drop(other.append(&entry("left")).await.unwrap());
    drop(third.append(&entry("held")).await.unwrap());
    assert!(one.left_behind().is_empty(), "all are held");
    other.close().await;
    let [(adopted, leftovers)] = <[_; 1]>::try_from(one.left_behind()).ok().unwrap();
    assert!(leftovers[0].replica == other.replica() && leftovers[0].entry == entry_like(&leftovers[0].entry, "left"));
    assert!(one.left_behind().is_empty(), "it is held");
    for record in leftovers {
        record.slip.done();
    }
    adopted.close().await;
    assert!(one.left_behind().is_empty(), "there is nothing left in it");
}

/// The same, if that is its token.
fn entry_like(like: &Entry, token: &str) -> Entry {
    let (Entry::Exchange(like), Entry::Exchange(expected)) = (like, entry(token)) else { panic!("another entry") };
    Entry::Exchange(ExchangeAnswer { flow: like.flow, ..expected })
}

#[tokio::test]
async fn s6_what_a_full_disk_does_not_take_is_counted_and_offered_again_until_there_is_room() {
    metrics::install();
    let (home, (orders, mut queue)) = (Home::new(), unbounded_channel());
    let folder = Folder::take(home.folder.path(), home.whose, NOW).unwrap();
    let (room, _) = journal_of(&folder).unwrap();
    let (directory, instance, replica) = (home.folder.path().to_owned(), home.whose.instance, folder.replica);
    let spool = Spool { directory, instance, replica, vault: Arc::clone(&home.vault), orders: orders.clone() };
    let journal = journal::tests::full(&[false]);
    let mut writer = Writer { path: home.file(), journal, depth: 0, shown: 0, orders, _folder: folder };
    let appending = tokio::spawn(spool.append(&entry("at")));
    writer.carry_out(queue.recv().await.into_iter());
    assert_eq!(writer.depth, 0);
    assert!(metrics::render().contains("token_wallet_spool_failures_total 1"), "{}", metrics::render());
    writer.journal = room;
    writer.carry_out(queue.recv().await.into_iter());
    assert!(appending.await.unwrap().is_ok());
    assert_eq!(writer.depth, 1);
}
