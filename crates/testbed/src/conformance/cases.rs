//! The cases. Each is a fact that the trait promises.

use std::collections::BTreeSet;

use super::bed::{Bed, Case, Checked, How, ensure, is_cancelled, text};
use crate::{Environment, ErrorKind, Obtained};

/// More moments than any call of three machines has.
const MOMENTS: usize = 40;

/// What every testbed must do.
pub(super) const CASES: &[(&str, Case)] = &[
    ("init/gives-every-machine", |bed| Box::pin(init_gives_every_machine(bed))),
    ("init/crosses-a-process", |bed| Box::pin(init_crosses_a_process(bed))),
    ("init/finds-again", |bed| Box::pin(init_finds_again(bed))),
    ("init/adds-what-is-missing", |bed| Box::pin(init_adds_what_is_missing(bed))),
    ("init/dropped-is-continued", |bed| Box::pin(init_dropped_is_continued(bed))),
    ("init/cancelled-leaves-nothing", |bed| Box::pin(init_cancelled_leaves_nothing(bed))),
    ("init/cancelled-keeps-what-was-there", |bed| Box::pin(init_cancelled_keeps(bed))),
    ("destroy/twice", |bed| Box::pin(destroy_twice(bed))),
    ("destroy/after-a-dropped-init", |bed| Box::pin(destroy_after_a_dropped_init(bed))),
    ("destroy/without-a-record", |bed| Box::pin(destroy_without_a_record(bed))),
    ("destroy/of-nothing", |bed| Box::pin(destroy_of_nothing(bed))),
    ("destroy/keeps-another-experiment", |bed| Box::pin(destroy_keeps_another_experiment(bed))),
    ("give-back/those-alone", |bed| Box::pin(give_back_those_alone(bed))),
    ("hooks/can-be-called", |bed| Box::pin(hooks_can_be_called(bed))),
    ("plan/makes-nothing", |bed| Box::pin(plan_makes_nothing(bed))),
    ("status/names-what-is-there", |bed| Box::pin(status_names_what_is_there(bed))),
    ("pool/can-be-used", |bed| Box::pin(pool_can_be_used(bed))),
];

const NOTHING_TAKEN: Option<&str> = Some("the testbed takes nothing");

fn ids(got: &Obtained) -> Vec<(String, String, String)> {
    got.hosts.iter().map(|host| (host.alias.clone(), host.id.clone(), host.address.clone())).collect()
}

async fn init_gives_every_machine(bed: &Bed<'_>) -> Checked {
    let got = bed.init(3).await?;
    ensure(got.hosts.len() == 3, format!("three hosts, and not {}", got.hosts.len()))?;
    ensure(got.missing.is_empty(), format!("nothing is missing, and not {:?}", got.missing))?;
    let different: BTreeSet<_> = got.hosts.iter().map(|host| &host.id).collect();
    ensure(different.len() == 3, format!("three different ids, and not {different:?}"))?;
    bed.expect(3, "after init").await?;
    Ok(None)
}

async fn init_crosses_a_process(bed: &Bed<'_>) -> Checked {
    let got = bed.init(2).await?;
    let environment = bed.environment(&bed.reservation(2), &got);
    let json = serde_json::to_string(&environment).map_err(|e| format!("it cannot be written: {e}"))?;
    let back: Environment = serde_json::from_str(&json).map_err(|e| format!("it cannot be read: {e}"))?;
    ensure(back == environment, "what is read is what was written")?;
    bed.destroy(&back.obtained).await?;
    bed.expect(0, "after destroy with what was read").await?;
    Ok(None)
}

async fn init_finds_again(bed: &Bed<'_>) -> Checked {
    let first = bed.init(3).await?;
    let made: BTreeSet<String> = first.hosts.iter().map(|host| host.alias.clone()).collect();
    if bed.takes() {
        ensure(first.made == made, format!("the first call made everything, and says {:?}", first.made))?;
    }
    let second = bed.init(3).await?;
    ensure(ids(&first) == ids(&second), format!("the same hosts: {:?} and {:?}", ids(&first), ids(&second)))?;
    ensure(second.made.is_empty(), format!("the second call made nothing, and says {:?}", second.made))?;
    bed.expect(3, "after the second init").await?;
    bed.forget();
    let third = bed.init(3).await?;
    if bed.features().await?.proves_empty {
        ensure(ids(&first) == ids(&third), "what was found without a record is the same")?;
        bed.expect(3, "after an init without a record").await?;
    }
    Ok(None)
}

async fn init_adds_what_is_missing(bed: &Bed<'_>) -> Checked {
    let one = bed.init(1).await?;
    let three = bed.init(3).await?;
    ensure(ids(&three).contains(&ids(&one)[0]), "the machine that was there is still the same")?;
    if bed.takes() {
        ensure(three.made.len() == 2, format!("the second call made two, and says {:?}", three.made))?;
    }
    bed.expect(3, "after the second init").await?;
    Ok(None)
}

async fn init_dropped_is_continued(bed: &Bed<'_>) -> Checked {
    for moment in 1..MOMENTS {
        let through = bed.interrupted(3, moment, How::Dropped).await?.is_some();
        let got = bed.init(3).await.map_err(|e| format!("after a drop at moment {moment}: {e}"))?;
        ensure(got.hosts.len() == 3, format!("three hosts after a drop at moment {moment}"))?;
        bed.expect(3, &format!("after a drop at moment {moment} and another init")).await?;
        bed.destroy(&got).await?;
        bed.expect(0, &format!("after a drop at moment {moment}, another init and destroy")).await?;
        if through {
            return Ok(None);
        }
    }
    Err(format!("a call for three machines does not end within {MOMENTS} moments"))
}

async fn init_cancelled_leaves_nothing(bed: &Bed<'_>) -> Checked {
    for moment in 0..MOMENTS {
        match bed.interrupted(3, moment, How::Cancelled).await? {
            Some(Err(error)) => {
                let when = format!("after a cancel at moment {moment}");
                ensure(
                    is_cancelled(&error),
                    format!("{when} the error is of kind cancelled: {}", error.report()),
                )?;
                bed.expect(0, &when).await?;
            }
            Some(Ok(got)) => {
                bed.destroy(&got).await?;
                if moment > 0 {
                    return Ok(None);
                }
                // Nothing was asked of the provider yet, and nothing has to be undone.
                return Err("a call that is cancelled before it starts makes nothing".into());
            }
            None => return Err("it was not dropped".into()),
        }
    }
    Err(format!("a call for three machines does not end within {MOMENTS} moments"))
}

async fn init_cancelled_keeps(bed: &Bed<'_>) -> Checked {
    let one = bed.init(1).await?;
    for moment in 0..MOMENTS {
        match bed.interrupted(3, moment, How::Cancelled).await? {
            Some(Err(_)) => {
                bed.expect(1, &format!("after a cancel at moment {moment} beside one machine")).await?
            }
            _ => break,
        }
    }
    let again = bed.init(1).await?;
    ensure(ids(&one) == ids(&again), "the machine that was there is still the same")?;
    Ok(None)
}

async fn destroy_twice(bed: &Bed<'_>) -> Checked {
    let got = bed.init(2).await?;
    bed.destroy(&got).await?;
    bed.expect(0, "after destroy").await?;
    bed.destroy(&got).await.map_err(|e| format!("the second destroy: {e}"))?;
    let again = bed.init(2).await.map_err(|e| format!("an init after destroy: {e}"))?;
    ensure(again.made.len() == if bed.takes() { 2 } else { 0 }, "what was given back is made anew")?;
    Ok(None)
}

async fn destroy_after_a_dropped_init(bed: &Bed<'_>) -> Checked {
    for moment in 1..MOMENTS {
        let through = bed.interrupted(3, moment, How::Dropped).await?.is_some();
        bed.destroy(&Obtained::default()).await?;
        bed.settles_at_most(0, &format!("after a drop at moment {moment} and destroy")).await?;
        if through {
            return Ok(None);
        }
    }
    Err(format!("a call for three machines does not end within {MOMENTS} moments"))
}

async fn destroy_without_a_record(bed: &Bed<'_>) -> Checked {
    if !bed.takes() {
        return Ok(NOTHING_TAKEN);
    }
    if !bed.features().await?.proves_empty {
        return Ok(Some("the testbed relies on what was recorded"));
    }
    bed.init(2).await?;
    bed.forget();
    bed.destroy(&Obtained::default()).await?;
    bed.expect(0, "after destroy without a record").await?;
    Ok(None)
}

async fn destroy_of_nothing(bed: &Bed<'_>) -> Checked {
    bed.destroy(&Obtained::default()).await?;
    bed.expect(0, "after destroy of nothing").await?;
    Ok(None)
}

async fn destroy_keeps_another_experiment(bed: &Bed<'_>) -> Checked {
    let other = bed.other();
    let (own, theirs) = (bed.init(1).await?, other.init(1).await?);
    bed.destroy(&own).await?;
    bed.expect(0, "after its destroy").await?;
    other.expect(1, "after the destroy of another experiment").await?;
    other.destroy(&theirs).await?;
    other.expect(0, "after its own destroy").await?;
    Ok(None)
}

async fn give_back_those_alone(bed: &Bed<'_>) -> Checked {
    if !bed.takes() {
        return Ok(NOTHING_TAKEN);
    }
    let got = bed.init(3).await?;
    let one: BTreeSet<String> = [got.hosts[1].alias.clone()].into();
    let environment = bed.environment(&bed.reservation(3), &got);
    match bed.open().await?.give_back(&bed.context(), &environment, &one).await {
        Err(error) if *error.kind() == ErrorKind::Unsupported => {
            return Ok(Some("the testbed cannot give back single machines"));
        }
        result => result.map_err(text)?,
    }
    bed.expect(2, "after one of three was given back").await?;
    let again = bed.init(3).await?;
    ensure(again.made == one, format!("that one is made anew, and not {:?}", again.made))?;
    let kept =
        |got: &Obtained| ids(got).into_iter().filter(|(name, ..)| !one.contains(name)).collect::<Vec<_>>();
    ensure(kept(&got) == kept(&again), "the others are the same")?;
    Ok(None)
}

async fn hooks_can_be_called(bed: &Bed<'_>) -> Checked {
    let got = bed.init(1).await?;
    let environment = bed.environment(&bed.reservation(1), &got);
    let testbed = bed.open().await?;
    testbed.before_preinstall(&bed.context(), &environment).await.map_err(text)?;
    testbed.after_preinstall(&bed.context(), &environment).await.map_err(text)?;
    bed.expect(1, "after the hooks").await?;
    Ok(None)
}

async fn plan_makes_nothing(bed: &Bed<'_>) -> Checked {
    let plan = bed.open().await?.plan(&bed.context(), &bed.reservation(3)).await.map_err(text)?;
    let planned: Vec<&str> = plan.machines.iter().map(|machine| machine.name.as_str()).collect();
    let wanted = bed.reservation(3);
    let wanted: Vec<&str> = wanted.machines.iter().map(|machine| machine.name.as_str()).collect();
    ensure(planned == wanted, format!("the plan has {wanted:?}, and not {planned:?}"))?;
    bed.expect(0, "after a plan").await?;
    Ok(None)
}

async fn status_names_what_is_there(bed: &Bed<'_>) -> Checked {
    if !bed.features().await?.status {
        return Ok(Some("the testbed cannot tell what is there"));
    }
    let got = bed.init(2).await?;
    let environment = bed.environment(&bed.reservation(2), &got);
    let status = bed.open().await?.status(&bed.context(), &environment).await.map_err(text)?;
    for host in &got.hosts {
        let found = status.iter().any(|machine| machine.name == host.alias);
        ensure(found, format!("{:?} is in the status: {status:?}", host.alias))?;
    }
    bed.destroy(&got).await?;
    if bed.takes() {
        let status = bed.open().await?.status(&bed.context(), &environment).await.map_err(text)?;
        let alive = status.iter().any(|machine| machine.state != "terminated");
        ensure(!alive, format!("nothing is in the status after destroy: {status:?}"))?;
    }
    Ok(None)
}

async fn pool_can_be_used(bed: &Bed<'_>) -> Checked {
    let mut got = bed.init(2).await?;
    let Some(network) = got.networks.iter().find(|network| network.pool.is_some()).cloned() else {
        ensure(!bed.features().await?.pools, "the testbed says that it has pools, and there is none")?;
        return Ok(Some("the testbed has no pool"));
    };
    let used: BTreeSet<_> =
        got.hosts.iter().flat_map(|host| host.addresses.clone()).chain(network.gateway).collect();
    let ip = got.take_ip(Some(&network.name), Some("suite"), None).map_err(text)?;
    ensure(!used.contains(&ip), format!("{ip} of the pool is in use"))?;
    let inside = network.cidr.is_none_or(|cidr| cidr.contains(&ip));
    ensure(inside, format!("{ip} of the pool is in its network"))?;
    let other = got.take_ip(Some(&network.name), Some("suite-two"), None);
    ensure(other.as_ref().ok() != Some(&ip), format!("{ip} is handed out twice"))?;
    got.give_back_ip(ip).map_err(text)?;
    Ok(None)
}
