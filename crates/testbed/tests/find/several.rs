//! All or nothing, and what a provider may return.

use std::{
    collections::BTreeMap,
    sync::{Arc, Mutex},
};

use cloud_providers::{MapEnv, Resource};
use testbed::{
    Context, Environment, Error, ErrorKind, Host, Network, NetworkRequest, Obtained, OpContext, Pool,
    Reservation, Shortage, StaticHost,
    find::{self, Search},
    several::{self, Member},
};
use tokio::sync::Semaphore;

use crate::double::{Act, Double, reservation};

fn plain(_: &str) -> Context {
    Context::new("/nowhere")
}

fn member(double: &Arc<Double>, reservation: Reservation) -> Member {
    (reservation, double.clone())
}

fn quota() -> Option<Error> {
    Some(Error::new(ErrorKind::Quota, "no more of those"))
}

#[tokio::test]
async fn all_of_several_come_back_with_their_provider_as_a_role() {
    let (a, b) = (Double::new(Act::default()), Double::new(Act::default()));
    let mut wanted = reservation("lab", &["m1", "m2"]);
    wanted.machines[0].extra.insert("disk".into(), "sdb".into());
    wanted.machines[1].user = Some("other".into());
    wanted.access.user = Some("root".into());
    let got = several::init(&[member(&a, wanted), member(&b, reservation("cloud", &["m3"]))], &plain)
        .await
        .unwrap();
    let names: Vec<&str> = got.hosts.iter().map(|host| host.alias.as_str()).collect();
    assert_eq!(names, ["m1", "m2", "m3"]);
    let roles: BTreeMap<_, _> =
        got.roles().into_iter().map(|(role, hosts)| (role.to_owned(), hosts.len())).collect();
    assert_eq!(roles, [("cloud".into(), 1), ("lab".into(), 2), ("role".into(), 3)].into());
    assert_eq!((got.hosts[0].provider.as_str(), got.hosts[0].extra["disk"].as_str()), ("lab", Some("sdb")));
    assert_eq!((got.hosts[0].user.as_deref(), got.hosts[1].user.as_deref()), (Some("root"), Some("other")));
    assert_eq!(got.made.len(), 3);
}

#[tokio::test]
async fn a_failure_gives_back_what_was_made_and_never_what_was_found() {
    // One had nothing before, one had everything, one had a machine already.
    let fresh = Double::new(Act::default());
    let old = Double::with(Act::default(), &["o1"]);
    let mixed = Double::with(Act::default(), &["x1"]);
    let full =
        Double::new(Act { refuse: quota(), gate: Some(Arc::new(Semaphore::new(1))), ..Act::default() });
    let members = [
        member(&fresh, reservation("fresh", &["f1", "f2"])),
        member(&old, reservation("old", &["o1"])),
        member(&mixed, reservation("mixed", &["x1", "x2"])),
        member(&full, reservation("full", &["u1"])),
    ];
    let error = several::init(&members, &plain).await.unwrap_err();
    assert_eq!(
        (error.kind(), error.to_string().as_str()),
        (&ErrorKind::Quota, "no more of those (provider: full)")
    );
    assert!(fresh.there().is_empty());
    assert_eq!((old.there(), mixed.there()), (vec!["o1".to_owned()], vec!["x1".to_owned()]));
    assert_eq!((fresh.calls(), old.calls()), (vec!["init", "destroy"], vec!["init"]));
    assert_eq!(mixed.calls(), ["init", "give_back"]);
}

#[tokio::test]
async fn a_failure_cancels_those_that_are_still_at_it() {
    let slow = Double::new(Act { gate: Some(Arc::new(Semaphore::new(0))), ..Act::default() });
    let full = Double::new(Act { refuse: quota(), ..Act::default() });
    let members = [member(&slow, reservation("slow", &["s1"])), member(&full, reservation("full", &["u1"]))];
    let error = several::init(&members, &plain).await.unwrap_err();
    // The other's cancellation is only what followed.
    assert_eq!(*error.kind(), ErrorKind::Quota);
    assert!(slow.there().is_empty());
}

#[tokio::test]
async fn the_callers_cancel_and_deadline_reach_every_provider() {
    let slow = Double::new(Act { gate: Some(Arc::new(Semaphore::new(0))), ..Act::default() });
    let members = [member(&slow, reservation("slow", &["s1"]))];
    let op = OpContext::new();
    op.cancel.cancel();
    let cancelled = |_: &str| Context { op: op.clone(), ..plain("") };
    assert_eq!(*several::init(&members, &cancelled).await.unwrap_err().kind(), ErrorKind::Cancelled);
    let late = |_: &str| Context {
        op: OpContext::new().with_timeout(std::time::Duration::from_millis(20)),
        ..plain("")
    };
    assert_eq!(*several::init(&members, &late).await.unwrap_err().kind(), ErrorKind::Cancelled);
}

#[tokio::test]
async fn what_cannot_be_given_back_is_told() {
    let left = Error::internal("it does not go").with_leftovers([Resource::new("machine", "i-1")]);
    let sticky = Double::new(Act { stay: Some(left), ..Act::default() });
    let whole = Double::with(Act { whole: true, ..Act::default() }, &["w1"]);
    let full = Double::new(Act { refuse: quota(), ..Act::default() });
    let members = [
        member(&sticky, reservation("sticky", &["y1"])),
        member(&whole, reservation("whole", &["w1", "w2"])),
        member(&full, reservation("full", &["u1"])),
    ];
    let error = several::init(&members, &plain).await.unwrap_err();
    let text = error.to_string();
    for part in [
        "no more of those",
        "still there at sticky",
        "machines: y1",
        "it does not go",
        "still there at whole",
        "machines: w2",
    ] {
        assert!(text.contains(part), "{part} is not in {text}");
    }
    assert_eq!((error.leftovers().len(), error.leftovers()[0].id.as_str()), (1, "i-1"));
}

#[tokio::test]
async fn giving_back_sees_what_was_kept_meanwhile_and_is_not_cancelled_with_the_call() {
    let state = Mutex::new(0);
    let seen = Mutex::new(Vec::new());
    let (made, full) = (Double::new(Act::default()), Double::new(Act { refuse: quota(), ..Act::default() }));
    let members = [member(&made, reservation("made", &["m1"])), member(&full, reservation("full", &["u1"]))];
    let contexts = |name: &str| {
        let mut ctx = plain(name);
        let mut count = state.lock().unwrap();
        *count += 1;
        ctx.state.insert("asked".into(), (*count).into());
        seen.lock().unwrap().push(name.to_owned());
        ctx
    };
    several::init(&members, &contexts).await.unwrap_err();
    assert_eq!(*seen.lock().unwrap(), ["made", "full", "made"], "the state is asked for anew");
    assert!(made.there().is_empty());
}

#[tokio::test]
async fn fewer_than_allowed_is_an_error_with_the_reasons_and_nothing_stays() {
    let short =
        || Act { missing: [("m2".to_owned(), "no room in zone a".to_owned())].into(), ..Act::default() };
    let double = Double::new(short());
    let mut wanted = reservation("lab", &["m1", "m2"]);
    let error = several::init(&[member(&double, wanted.clone())], &plain).await.unwrap_err();
    assert!(matches!(error.kind(), ErrorKind::Capacity { .. }));
    let text = error.to_string();
    assert!(
        text.contains("group \"group-lab\" has 1 of 2 machines and needs 2: no room in zone a"),
        "{text}"
    );
    assert!(double.there().is_empty());

    for (shortage, min, enough) in [
        (Shortage::Lenient, None, true),
        (Shortage::Lenient, Some(2), false),
        (Shortage::Strict, Some(1), true),
    ] {
        (wanted.shortage, wanted.groups[0].min) = (shortage, min);
        let result = several::init(&[member(&Double::new(short()), wanted.clone())], &plain).await;
        assert_eq!(result.is_ok(), enough, "{shortage:?} {min:?}");
        if let Ok(got) = result {
            assert_eq!(got.missing["m2"], "no room in zone a");
        }
    }
}

#[tokio::test]
async fn what_no_provider_may_return_is_told_and_given_back() {
    type Change = fn(&mut Obtained);
    let cases: &[(Change, &str)] = &[
        (|got| got.hosts.push(got.hosts[0].clone()), "machine \"m1\" twice"),
        (
            |got| got.hosts.push(Host::new("stranger", "h", "h")),
            "machine \"stranger\", which nobody asked for",
        ),
        (|got| got.hosts[0].address.clear(), "machine \"m1\" without an address"),
        (
            |got| got.hosts[1].address = got.hosts[0].address.clone(),
            "machines \"m1\" and \"m2\" at one address",
        ),
        (|got| _ = got.missing.insert("m1".into(), String::new()), "\"m1\" both there and missing"),
        (
            |got| _ = got.missing.insert("m9".into(), String::new()),
            "\"m9\" as missing, which nobody asked for",
        ),
        (|got| got.networks.extend([network("n", None), network("n", None)]), "network \"n\" twice"),
        (|got| got.networks.push(network("n", Some(("192.0.2.9", "192.0.2.1")))), "ends before it starts"),
        (|got| got.networks.push(network("n", Some(("192.0.2.9", "2001:db8::1")))), "mixes IPv4 and IPv6"),
        (
            |got| got.networks.push(network("n", Some(("198.51.100.1", "198.51.100.2")))),
            "outside its network",
        ),
    ];
    for (change, part) in cases {
        let double = Double::new(Act { change: Some(*change), ..Act::default() });
        let error =
            several::init(&[member(&double, reservation("lab", &["m1", "m2"]))], &plain).await.unwrap_err();
        assert!(error.report().contains(part), "{part} is not in {}", error.report());
        assert!(error.report().contains("provider \"lab\" returned what it may not"), "{}", error.report());
        assert!(!double.there().contains(&"m2".to_owned()), "{part}");
    }
    let mut wanted = reservation("lab", &["m1"]);
    let mut request = NetworkRequest::default();
    request.name = "front".into();
    wanted.networks.push(request);
    let error = several::init(&[member(&Double::new(Act::default()), wanted)], &plain).await.unwrap_err();
    assert!(error.report().contains("no network \"front\", which was asked for"), "{}", error.report());
}

fn network(name: &str, pool: Option<(&str, &str)>) -> Network {
    let mut network = Network::default();
    network.name = name.to_owned();
    network.cidr = Some("192.0.2.0/24".parse().unwrap());
    network.pool = pool.map(|(start, end)| Pool::new(start.parse().unwrap(), end.parse().unwrap()));
    network
}

#[tokio::test]
async fn networks_of_the_same_name_are_not_the_same_network() {
    let act = || Act { change: Some(|got| got.networks.push(network("default", None))), ..Act::default() };
    let members = [
        member(&Double::new(act()), reservation("lab", &["m1"])),
        member(&Double::new(act()), reservation("cloud", &["m2"])),
    ];
    let got = several::init(&members, &plain).await.unwrap();
    let names: Vec<_> = got.networks.iter().map(|n| (n.name.as_str(), n.roles.clone())).collect();
    assert_eq!(names, [("lab-default", vec!["lab".to_owned()]), ("cloud-default", vec!["cloud".to_owned()])]);
}

#[tokio::test]
async fn names_twice_in_a_document_are_refused_before_anything_is_asked() {
    let double = Double::new(Act::default());
    let mut other = reservation("lab", &["m1", "m2"]);
    other.experiment = "another".into();
    let members = [member(&double, reservation("lab", &["m1"])), member(&double, other)];
    let text = several::init(&members, &plain).await.unwrap_err().to_string();
    for part in [
        "3 problems",
        "two experiments",
        "two providers are called \"lab\"",
        "two machines are called \"m1\"",
    ] {
        assert!(text.contains(part), "{part} is not in {text}");
    }
    assert!(double.calls().is_empty());
    assert!(several::init(&[], &plain).await.unwrap_err().to_string().contains("no provider"));
}

#[tokio::test]
async fn destroy_goes_on_when_one_provider_fails() {
    let left = |id| Some(Error::internal("it does not go").with_leftovers([Resource::new("machine", id)]));
    let (a, b) = (
        Double::with(Act { stay: left("i-1"), ..Act::default() }, &["m1"]),
        Double::with(Act { stay: left("i-2"), ..Act::default() }, &["m2"]),
    );
    let c = Double::with(Act::default(), &["m3"]);
    let parts = [reservation("a", &["m1"]), reservation("b", &["m2"]), reservation("c", &["m3"])];
    let members = [member(&a, parts[0].clone()), member(&b, parts[1].clone()), member(&c, parts[2].clone())];
    let mut environment = Environment::new(parts.to_vec());
    for (name, provider) in [("m1", "a"), ("m2", "b"), ("m3", "c")] {
        let mut host = Host::new(name, name, name);
        host.provider = provider.into();
        environment.obtained.hosts.push(host);
    }
    let error = several::destroy(&members, &plain, &environment).await.unwrap_err();
    let text = error.to_string();
    assert!(
        text.contains("2 problems") && text.contains("provider: a") && text.contains("provider: b"),
        "{text}"
    );
    assert_eq!(error.leftovers().len(), 2);
    assert!(c.there().is_empty());
    several::destroy(&members[2..], &plain, &environment).await.unwrap();
}

#[tokio::test]
async fn hooks_plans_and_status_go_to_every_provider() {
    let (a, b) = (Double::with(Act::default(), &["m1"]), Double::new(Act { whole: true, ..Act::default() }));
    let parts = [reservation("a", &["m1"]), reservation("b", &["m2"])];
    let members = [member(&a, parts[0].clone()), member(&b, parts[1].clone())];
    let environment = Environment::new(parts.to_vec());
    several::before_preinstall(&members, &plain, &environment).await.unwrap();
    several::after_preinstall(&members, &plain, &environment).await.unwrap();
    assert_eq!((a.calls(), b.calls()), (vec!["before", "after"], vec!["before", "after"]));
    let plan = several::plan(&members, &plain).await.unwrap();
    assert_eq!((plan.machines.len(), plan.notes), (2, vec!["a: cheap".to_owned(), "b: cheap".to_owned()]));
    let status = several::status(&members, &plain, &environment).await.unwrap();
    assert_eq!(status[0].machines.as_ref().map(Vec::len), Some(1));
    assert_eq!((status[1].provider.as_str(), &status[1].machines), ("b", &None));

    let bad = Double::new(Act { refuse: quota(), stay: quota(), ..Act::default() });
    let members = [member(&bad, parts[0].clone()), member(&b, parts[1].clone())];
    assert!(several::plan(&members, &plain).await.unwrap_err().to_string().contains("provider: a"));
    let error = several::before_preinstall(&members, &plain, &environment).await.unwrap_err();
    assert!(error.to_string().contains("provider: a"), "{error}");
    assert_eq!(
        b.calls().iter().filter(|call| **call == "before").count(),
        1,
        "those after it are not called"
    );
}

#[tokio::test]
async fn hosts_that_exist_already_take_part_beside_others_and_outlive_a_failure() {
    let listener = tokio::net::TcpListener::bind("127.0.0.1:0").await.unwrap();
    let port = listener.local_addr().unwrap().port();
    tokio::spawn(async move {
        while let Ok((mut stream, _)) = listener.accept().await {
            // Whoever asks may be gone by now.
            let _ = tokio::io::AsyncWriteExt::write_all(&mut stream, b"SSH-2.0-test\r\n").await;
        }
    });
    let mut existing = reservation("static", &["old"]);
    let mut host = StaticHost::new("127.0.0.1");
    host.port = Some(port);
    existing.machines[0].host = Some(host);
    let search = Search::new(Arc::new(MapEnv::default()));
    let fixed = find::open(&search, &existing.provider).await.unwrap();
    let made = Double::new(Act::default());
    let members = [(existing.clone(), fixed.clone()), member(&made, reservation("lab", &["m1"]))];
    let got = several::init(&members, &plain).await.unwrap();
    assert_eq!((got.hosts.len(), got.made.len()), (2, 1));

    let full = Double::new(Act { refuse: quota(), ..Act::default() });
    let members = [(existing, fixed), member(&full, reservation("full", &["u1"]))];
    assert_eq!(
        several::init(&members, &plain).await.unwrap_err().to_string(),
        "no more of those (provider: full)"
    );
}
