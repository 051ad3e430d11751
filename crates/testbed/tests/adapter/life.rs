//! What one gets, what is found again, and what is given back.

use std::{collections::BTreeSet, sync::Arc};

use cloud_providers::{
    Capabilities, CreateRequest, ErrorKind, OpContext, Provider, Scope, Token, Unit,
    scripted::{Lag, ScriptedProvider, World},
    tags,
};
use testbed::{
    Error, Reservation, Result, Testbed, async_trait,
    conformance::{self, Harness},
};

use crate::setup::{User, least};

#[tokio::test(start_paused = true)]
async fn every_machine_is_made_once_and_found_again() {
    let user = User::new();
    let first = user.init(3).await.unwrap();
    assert_eq!(user.there(), User::once(3));
    let names: Vec<&str> = first.hosts.iter().map(|h| h.alias.as_str()).collect();
    assert_eq!(names, ["node-1", "node-2", "node-3"], "in the order of the document");
    assert!(first.hosts.iter().all(|h| h.host_key.is_some() && h.user.as_deref() == Some("root")));
    assert_eq!(first.made.len(), 3);
    let runs = user.runs();
    let again = user.init(3).await.unwrap();
    assert_eq!(again.hosts, first.hosts);
    assert!(again.made.is_empty());
    assert_eq!(user.runs(), runs, "nothing was asked for twice");
    let more = user.init(5).await.unwrap();
    assert_eq!(more.made, BTreeSet::from(["node-4".to_owned(), "node-5".to_owned()]));
    user.destroy().await.unwrap();
    user.destroy().await.unwrap();
    assert!(user.is_empty());
}

#[tokio::test(start_paused = true)]
async fn what_is_no_longer_in_the_document_stays_until_destroy() {
    let user = User::new();
    user.init(3).await.unwrap();
    assert_eq!(user.init(1).await.unwrap().hosts.len(), 1);
    assert_eq!(user.there(), User::once(3));
    let plan = user.testbed().plan(&user.context(), &user.reservation(2)).await.unwrap();
    assert_eq!(plan.machines.iter().filter(|m| m.exists).count(), 2);
    assert!(plan.notes.iter().any(|n| n.contains("node-3")), "{:?}", plan.notes);
    user.destroy().await.unwrap();
    assert!(user.is_empty());
}

#[tokio::test(start_paused = true)]
async fn machines_of_somebody_else_are_neither_used_nor_deleted() {
    let user = User::new();
    user.init(2).await.unwrap();
    let all = user.world.resources();
    let mine = all[0].tags[tags::HOLDER].clone();
    let give_to = |holder: &str| {
        for remote in &all {
            user.world.set_tag(&remote.resource.id, tags::HOLDER, Some(holder)).unwrap();
        }
    };
    give_to("somebody-else");
    let plan = user.testbed().plan(&user.context(), &user.reservation(2)).await.map(drop);
    for result in [plan, user.init(2).await.map(drop), user.destroy().await] {
        let error = result.unwrap_err();
        assert_eq!(*error.kind(), ErrorKind::Conflict);
        assert!(
            error.to_string().contains("somebody-else") && error.to_string().contains("another name"),
            "{error}"
        );
    }
    assert_eq!(user.there(), User::once(2), "nothing was touched");
    give_to(&mine);
    user.destroy().await.unwrap();
    assert!(user.is_empty());
}

#[tokio::test(start_paused = true)]
async fn without_what_was_kept_machines_are_found_and_given_back_all_the_same() {
    let user = User::new();
    user.init(2).await.unwrap();
    let other = user.forgetful();
    let obtained = other.init(2).await.unwrap();
    assert!(obtained.made.is_empty() && obtained.hosts.iter().all(|h| h.host_key.is_none()));
    other.destroy().await.unwrap();
    assert!(user.is_empty());
}

#[tokio::test(start_paused = true)]
async fn a_machine_made_anew_has_another_token() {
    let user = User::new();
    user.init(1).await.unwrap();
    user.destroy().await.unwrap();
    // This cloud answers a token of before with the instance that is gone, as EC2 does.
    user.init(1).await.unwrap();
    let forced = {
        let mut context = user.context();
        context.force = true;
        user.testbed().init(&context, &user.reservation(1)).await.unwrap()
    };
    assert_eq!(forced.made.len(), 1);
    assert_eq!(user.there(), User::once(1));
    let names: BTreeSet<String> = user
        .world
        .calls()
        .iter()
        .filter(|c| c.operation == "run_instance")
        .map(|c| c.target.clone())
        .collect();
    assert_eq!(names.len(), 3, "names are of the attempt: {names:?}");
    user.destroy().await.unwrap();
}

#[tokio::test(start_paused = true)]
async fn another_scope_is_left_alone() {
    let user = User::new();
    let provider = ScriptedProvider::new(&user.world);
    let token = Token::new(Scope::Cluster("exp".into()), "node-1", 1);
    let unit = Unit { id: "other".into(), name_hint: "other".into() };
    provider.create_instance(&OpContext::new(), &CreateRequest::new(token, unit, "n")).await.unwrap();
    let before = user.world.resources();
    user.init(2).await.unwrap();
    user.destroy().await.unwrap();
    assert_eq!(user.world.resources(), before);
}

#[tokio::test(start_paused = true)]
async fn lists_that_lag_behind_hide_nothing_from_destroy() {
    for lag in 1..6 {
        let user = User::new();
        user.world.set_lag(Lag::calls(lag));
        user.init(2).await.unwrap();
        user.destroy().await.unwrap();
        assert!(user.is_empty(), "lag {lag}: {:?}", user.there());
    }
}

#[tokio::test(start_paused = true)]
async fn a_stopped_machine_is_not_thrown_away_unasked() {
    let user = User::new();
    user.init(2).await.unwrap();
    let id =
        user.world.resources().iter().find(|r| r.resource.kind == "instance").unwrap().resource.id.clone();
    user.world.stop(&id).unwrap();
    let error = user.init(2).await.unwrap_err();
    assert_eq!(*error.kind(), ErrorKind::Conflict);
    assert!(error.to_string().contains("--force-deploy"), "{error}");
    assert_eq!(user.there(), User::once(2));
    user.destroy().await.unwrap();
    assert!(user.is_empty());
}

#[tokio::test(start_paused = true)]
async fn what_is_missing_in_a_provider_is_told_before_anything_is_made() {
    let mut can = Capabilities::default();
    can.user_data_limit = Some(10);
    let user = User::new().with_capabilities(can);
    let mut reservation = user.reservation(6);
    reservation.machines[0].size.gpus = Some(1);
    reservation.machines[1].user = Some("Not An Account".into());
    reservation.machines[2].kind = Some("huge".into());
    reservation.machines[3].networks = vec!["nowhere".into()];
    let error = user.testbed().init(&user.context(), &reservation).await.unwrap_err();
    let text = error.to_string();
    for part in ["plain_machines", "1 GPUs", "Not An Account", "huge", "nowhere", "user data is too large"] {
        assert!(text.contains(part), "{part} is not in {text}");
    }
    assert!(user.world.calls().is_empty(), "nobody was called");
    assert_eq!(
        user.testbed().plan(&user.context(), &reservation).await.unwrap_err().to_string(),
        text,
        "a plan refuses what init refuses"
    );
}

#[tokio::test(start_paused = true)]
async fn a_provider_that_cannot_list_is_served_by_what_was_kept() {
    for release in [false, true] {
        let mut can = least();
        can.release = release;
        let user = User::new().with_capabilities(can);
        let first = user.init(3).await.unwrap();
        let again = user.init(3).await.unwrap();
        assert_eq!(first.hosts, again.hosts);
        assert_eq!(user.there(), User::once(3));
        let status = user.testbed().status(&user.context(), &user.environment()).await.unwrap_err();
        assert_eq!(*status.kind(), ErrorKind::Unsupported);
        user.destroy().await.unwrap();
        user.destroy().await.unwrap();
        assert!(user.is_empty(), "release {release}: {:?}", user.there());
    }
}

/// The suite of testbeds over the cloud in memory.
struct Suite(User);

#[async_trait]
impl Harness for Suite {
    async fn open(&self) -> Result<Arc<dyn Testbed>> {
        Ok(self.0.testbed())
    }

    fn reservation(&self, experiment: &str, machines: usize) -> Reservation {
        let mut reservation = self.0.reservation(machines);
        reservation.experiment = experiment.to_owned();
        reservation
    }

    async fn there(&self, experiment: &str) -> Result<Vec<String>> {
        let provider = ScriptedProvider::new(&self.0.world);
        let scope = Scope::Experiment(experiment.to_owned());
        let list = provider.list_owned(&OpContext::new(), &scope).await?;
        let name = |t: Option<Token>| t.map(|t| t.unit).ok_or_else(|| Error::internal("a token is missing"));
        list.entries.into_iter().map(|entry| name(entry.token)).collect()
    }
}

#[tokio::test]
async fn the_suite_of_testbeds_passes() {
    let report = conformance::run(&Suite(User::of(&World::new()))).await;
    println!("{report}");
    assert!(report.passed(), "{report}");
    // A cloud in general has no free addresses that anybody knows of.
    assert_eq!(report.skipped(), ["pool/can-be-used"], "{report}");
}
