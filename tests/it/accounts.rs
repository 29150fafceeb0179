//! Accounts as their users arrange them: labels, defaults, and what else could be linked.

use token_wallet::proto::v1;
use tonic::{Code, Status};

use crate::support::harness::{Engine, Harness, on_both_engines, reason};

async fn update(
    harness: &Harness,
    paths: &[&str],
    request: v1::UpdateExternalAccountRequest,
) -> Result<v1::ExternalAccount, Status> {
    let paths = paths.iter().map(|path| (*path).to_owned()).collect();
    let request = v1::UpdateExternalAccountRequest { update_mask: Some(prost_types::FieldMask { paths }), ..request };
    let answer = harness.accounts().update_external_account(request).await?;
    Ok(answer.into_inner().external_account.unwrap())
}

async fn make_default(harness: &Harness, account: &str, is_default: bool) -> Result<v1::ExternalAccount, Status> {
    let request =
        v1::UpdateExternalAccountRequest { external_account_id: account.into(), is_default, ..Default::default() };
    update(harness, &["is_default"], request).await
}

async fn label(harness: &Harness, account: &str, label: &str, etag: &str) -> Result<v1::ExternalAccount, Status> {
    let request = v1::UpdateExternalAccountRequest {
        external_account_id: account.into(),
        label: label.into(),
        etag: etag.into(),
        ..Default::default()
    };
    update(harness, &["label"], request).await
}

async fn shown(harness: &Harness, account: &str) -> v1::ExternalAccount {
    let request = v1::GetExternalAccountRequest { external_account_id: account.into() };
    harness.accounts().get_external_account(request).await.unwrap().into_inner().external_account.unwrap()
}

async fn providers_of(
    harness: &Harness,
    request: v1::ListUserProvidersRequest,
) -> Result<v1::ListUserProvidersResponse, Status> {
    harness.accounts().list_user_providers(request).await.map(tonic::Response::into_inner)
}

on_both_engines! {
    async fn a_get_that_names_no_account_follows_the_default(engine) {
        let harness = Harness::start(engine).await;
        let (one, two) = (harness.link("u", "demo").await, harness.link("u", "alice").await);
        assert_eq!(reason(&harness.get("u").await.unwrap_err()), "DEFAULT_ACCOUNT_UNSET");
        for account in [&one, &two, &one] {
            assert!(make_default(&harness, &account.id, true).await.unwrap().is_default);
            assert_eq!(harness.get("u").await.unwrap().external_account_id, account.id);
        }
        assert!(!shown(&harness, &two.id).await.is_default, "there is one default");
        // Not its own, so nothing changes for the one that is.
        assert!(!make_default(&harness, &two.id, false).await.unwrap().is_default);
        assert_eq!(harness.get("u").await.unwrap().external_account_id, one.id);
        assert!(!make_default(&harness, &one.id, false).await.unwrap().is_default);
        assert_eq!(reason(&harness.get("u").await.unwrap_err()), "DEFAULT_ACCOUNT_UNSET");
        let told = "SELECT reason FROM events WHERE kind = 'account.default_changed' ORDER BY id";
        assert_eq!(harness.database().await.texts(told).await, ["set", "set", "set", "unset"]);
    }

    async fn a_label_is_shown_and_kept_sealed(engine) {
        let harness = Harness::start(engine).await;
        let account = harness.link("u", "demo").await;
        assert_eq!((account.label.as_str(), account.etag.is_empty()), ("", false));
        let labelled = label(&harness, &account.id, "canary at work", &account.etag).await.unwrap();
        assert_eq!(labelled.label, "canary at work");
        assert_ne!(labelled.etag, account.etag);
        assert_eq!(shown(&harness, &account.id).await, labelled);
        let hex = if engine == Engine::Sqlite { "hex(label)" } else { "upper(encode(label, 'hex'))" };
        let stored = harness.database().await.texts(&format!("SELECT {hex} FROM external_accounts")).await;
        assert!(!stored[0].contains("63616E617279"), "in the clear");
        // Linked again, it stays the account that it was.
        assert_eq!(harness.link("u", "demo").await.label, "canary at work");
        assert_eq!(label(&harness, &account.id, "", "").await.unwrap().label, "");
        for bad in ["x".repeat(129), "a\nb".to_owned()] {
            let refused = label(&harness, &account.id, &bad, "").await.unwrap_err();
            assert_eq!(reason(&refused), "INVALID_FIELD");
            assert!(refused.message().starts_with("label ") && !refused.message().contains(&bad));
        }
        for paths in [&[][..], &["state"], &["label", "nonsense"]] {
            let request = v1::UpdateExternalAccountRequest { external_account_id: account.id.clone(), ..Default::default() };
            let refused = update(&harness, paths, request).await.unwrap_err();
            assert!(refused.message().starts_with("update_mask "), "{paths:?}");
        }
    }

    async fn a_stale_etag_is_a_conflict_and_changes_nothing(engine) {
        let harness = Harness::start(engine).await;
        let (one, two) = (harness.link("u", "demo").await, harness.link("u", "alice").await);
        label(&harness, &one.id, "mine", &one.etag).await.unwrap();
        for etag in [one.etag.as_str(), "7", "no etag of ours"] {
            let refused = label(&harness, &one.id, "theirs", etag).await.unwrap_err();
            assert_eq!((refused.code(), reason(&refused).as_str()), (Code::Aborted, "CONFLICT"), "{etag}");
        }
        assert_eq!(shown(&harness, &one.id).await.label, "mine");
        // Whoever loses the default has changed too.
        make_default(&harness, &one.id, true).await.unwrap();
        let before = shown(&harness, &one.id).await;
        make_default(&harness, &two.id, true).await.unwrap();
        assert_eq!(reason(&label(&harness, &one.id, "x", &before.etag).await.unwrap_err()), "CONFLICT");
        let gone = v1::DeleteExternalAccountRequest { external_account_id: one.id.clone() };
        harness.accounts().delete_external_account(gone).await.unwrap();
        assert_eq!(reason(&make_default(&harness, &one.id, true).await.unwrap_err()), "ACCOUNT_NOT_FOUND");
        let other = "eac_00000000000000000000000000";
        assert_eq!(reason(&make_default(&harness, other, true).await.unwrap_err()), "ACCOUNT_NOT_FOUND");
    }

    async fn defaults_set_at_once_leave_one(engine) {
        let harness = Harness::start(engine).await;
        let accounts = [harness.link("u", "demo").await, harness.link("u", "alice").await, harness.link("u", "bob").await];
        for _ in 0..5 {
            let set = accounts.iter().map(|account| make_default(&harness, &account.id, true));
            for answer in futures_util::future::join_all(set).await {
                answer.unwrap();
            }
            let database = harness.database().await;
            assert_eq!(database.number("SELECT COUNT(*) FROM external_accounts WHERE is_default").await, 1);
            harness.get("u").await.unwrap();
        }
    }

    async fn a_users_providers_are_listed_with_their_accounts_and_what_can_be_linked(engine) {
        let harness = Harness::start(engine).await;
        harness.create_own("another", token_wallet::sandbox::DEFAULT_CLIENT_ID).await;
        let (one, two) = (harness.link("u", "demo").await, harness.link("u", "alice").await);
        harness.link("somebody-else", "bob").await;
        let of_u = v1::ListUserProvidersRequest { user_id: "u".into(), ..Default::default() };
        let listed = providers_of(&harness, of_u.clone()).await.unwrap().user_providers;
        let told: Vec<_> = listed
            .iter()
            .map(|of| {
                let accounts: Vec<_> = of.external_accounts.iter().map(|account| account.id.as_str()).collect();
                (of.provider.as_str(), accounts, of.connectable)
            })
            .collect();
        assert_eq!(told, [("another", vec![], true), ("sandbox", vec![one.id.as_str(), two.id.as_str()], true)]);
        assert!(listed.iter().all(|of| !of.display_name.is_empty()));
        // A provider that refuses us cannot be linked now.
        let refused = "UPDATE providers SET misconfigured_at = 1 WHERE slug = 'another'";
        assert_eq!(harness.database().await.execute(refused).await, 1);
        // In pages, of which each belongs to its user.
        let first = v1::ListUserProvidersRequest { page_size: 1, ..of_u.clone() };
        let first = providers_of(&harness, first).await.unwrap();
        assert_eq!((first.user_providers.len(), first.user_providers[0].connectable), (1, false));
        let next = v1::ListUserProvidersRequest { page_token: first.next_page_token.clone(), ..of_u };
        let next = providers_of(&harness, next).await.unwrap();
        assert_eq!((next.user_providers[0].provider.as_str(), next.next_page_token.as_str()), ("sandbox", ""));
        let page_token = first.next_page_token;
        let stolen = v1::ListUserProvidersRequest { user_id: "somebody-else".into(), page_token, ..Default::default() };
        assert_eq!(reason(&providers_of(&harness, stolen).await.unwrap_err()), "INVALID_FIELD");
        let nobody = v1::ListUserProvidersRequest { user_id: "nobody".into(), ..Default::default() };
        let nobody = providers_of(&harness, nobody).await.unwrap();
        assert!(nobody.user_providers.iter().all(|of| of.external_accounts.is_empty()));
    }

    async fn an_error_names_what_its_caller_sent_and_nothing_else(engine) {
        use tonic_types::StatusExt as _;
        let harness = Harness::start(engine).await;
        let account = harness.link("u", "demo").await.id;
        let told = async |external_account_id: &str, scope: &str| {
            let request = v1::GetAccessTokenRequest {
                user_id: "u".into(),
                external_account_id: external_account_id.into(),
                required_scopes: vec![scope.into()],
                ..Default::default()
            };
            let refused = harness.get_with(request).await.unwrap_err();
            let mut told: Vec<_> = refused.get_details_error_info().unwrap().metadata.into_iter().collect();
            told.sort();
            told
        };
        let pair = |key: &str, value: &str| (key.to_owned(), value.to_owned());
        let (provider, scopes) = (pair("provider", "sandbox"), pair("scopes", "admin"));
        assert_eq!(told("", "admin").await, [provider.clone(), scopes.clone()]);
        assert_eq!(told(&account, "admin").await, [pair("external_account_id", &account), provider, scopes]);
    }
}
