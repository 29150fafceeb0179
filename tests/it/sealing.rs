//! Root keys and damaged ciphertexts (faults K1, K2).

use std::os::unix::fs::PermissionsExt as _;

use token_wallet::app::App;
use token_wallet::clock::Clock;
use token_wallet::config::RootKeyPlace;
use token_wallet::keys::{self, KeysError};
use token_wallet::proto::v1;
use token_wallet::proto::v1::external_account::State;
use token_wallet::vault::RootKey;
use tonic::Code;

use crate::support::harness::{Engine, Harness, on_both_engines, reason};

on_both_engines! {
    async fn k1_a_root_key_that_is_missing_wrong_or_malformed_stops_the_start_and_changes_nothing(engine) {
        let mut harness = Harness::start(engine).await;
        harness.link("u", "demo").await;
        let token = harness.get("u").await.unwrap().access_token;
        harness.stop().await;
        let folder = tempfile::tempdir().unwrap();
        let file = |name: &str, text: &str, mode: u32| {
            let path = folder.path().join(name);
            std::fs::write(&path, text).unwrap();
            std::fs::set_permissions(&path, std::fs::Permissions::from_mode(mode)).unwrap();
            RootKeyPlace::File(path)
        };
        let (right, other) = (harness.config.root_key.clone(), RootKey::generate().to_base64());
        for (place, named) in [
            (RootKeyPlace::File(folder.path().join("nonesuch")), "nonesuch"),
            (RootKeyPlace::Env("TOKEN_WALLET_TEST_NO_SUCH_VARIABLE".into()), "TOKEN_WALLET_TEST_NO_SUCH_VARIABLE"),
            (file("wrong", &other, 0o600), "fingerprint"),
            (file("open", &other, 0o644), "open"),
            (file("short", "c2hvcnQ=", 0o600), "short"),
            (file("zero", "AAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAA=", 0o600), "zero"),
            (file("coded", "not base64!", 0o600), "coded"),
        ] {
            harness.config.root_key = place;
            let Err(error) = App::start(harness.config.clone(), Clock::system()).await else { panic!("{named} was taken") };
            assert_eq!(error.exit_code(), 78, "{error}");
            let told = error.to_string();
            assert!(told.contains(named), "{told}");
            assert!(!told.contains(other.as_str()), "never the key");
            let status = keys::status(&harness.config).await.unwrap_err();
            assert!(status.is_configuration());
        }
        harness.config.root_key = right;
        harness.restart().await;
        assert_eq!(harness.get("u").await.unwrap().access_token, token);
    }

    async fn k1_a_keyring_is_made_once(engine) {
        let mut harness = Harness::start(engine).await;
        harness.stop().await;
        let again = keys::init(&harness.config, &harness.clock).await.unwrap_err();
        assert!(matches!(again, KeysError::AlreadyThere));
        let status = keys::status(&harness.config).await.unwrap();
        assert_eq!((status.kind.as_str(), status.keys.len()), ("development", 1));
        // Rows without their keyring are told apart from a new store.
        let database = harness.database().await;
        database.execute("DELETE FROM keyring").await;
        assert!(matches!(keys::status(&harness.config).await.unwrap_err(), KeysError::KeyringMissing));
        assert!(matches!(keys::init(&harness.config, &harness.clock).await.unwrap_err(), KeysError::KeyringMissing));
    }

    async fn k2_a_damaged_or_moved_token_is_quarantined_and_never_served(engine) {
        // One grant for each kind of damage, told apart by its user; the moved ones are taken from the healthy user.
        let flip = if engine == Engine::Sqlite {
            "access_token = CAST(substr(access_token, 1, 60) || x'00' || substr(access_token, 62) AS BLOB)"
        } else {
            "access_token = set_byte(access_token, 60, get_byte(access_token, 60) # 1)"
        };
        for (damage, served) in [
            (flip, "access_token"),
            ("access_token = substr(access_token, 1, 70)", "access_token"),
            ("access_token = refresh_token", "access_token"),
            ("access_token = (SELECT access_token FROM grants WHERE user_id = 'healthy')", "access_token"),
            ("user_id = 'healthy'", "access_token"),
            ("access_generation = 7", "access_token"),
        ] {
            let harness = Harness::start(engine).await;
            harness.link("healthy", "alice").await;
            let account = harness.link("damaged", "demo").await;
            let database = harness.database().await;
            assert_eq!(database.execute(&format!("UPDATE grants SET {damage} WHERE user_id = 'damaged'")).await, 1);
            let refused = harness.get("damaged").await.unwrap_err();
            assert_eq!((refused.code(), reason(&refused).as_str()), (Code::DataLoss, "GRANT_QUARANTINED"), "{damage}");
            assert_eq!(harness.get("damaged").await.unwrap_err().code(), Code::DataLoss);
            let request = v1::GetExternalAccountRequest { external_account_id: account.id };
            let shown = harness.accounts().get_external_account(request).await.unwrap().into_inner();
            assert_eq!(shown.external_account.unwrap().state(), State::Quarantined, "{damage}");
            assert!(database.events().await.contains(&"account.quarantined".to_owned()));
            assert_eq!(database.texts("SELECT reason FROM events WHERE kind = 'account.quarantined'").await, [served]);
            assert!(harness.is_accepted(&harness.get("healthy").await.unwrap().access_token).await, "others go on");
            assert_eq!(database.number("SELECT COUNT(*) FROM grants").await, 2, "nothing is deleted");
        }
    }

    async fn k2_a_refresh_token_that_does_not_open_is_not_sent(engine) {
        let harness = Harness::start(engine).await;
        harness.link("u", "demo").await;
        harness.database().await.execute("UPDATE grants SET refresh_token = substr(refresh_token, 1, 70)").await;
        harness.pass(std::time::Duration::from_hours(2));
        assert_eq!(reason(&harness.get("u").await.unwrap_err()), "GRANT_QUARANTINED");
        assert!(harness.refreshes().is_empty());
        // A new consent brings it back.
        harness.link("u", "demo").await;
        assert!(harness.is_accepted(&harness.get("u").await.unwrap().access_token).await);
    }
}
