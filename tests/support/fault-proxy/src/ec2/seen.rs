//! Describing: states that move, and what is seen a moment later.

use std::time::Duration;

use anyhow::Result;
use roxmltree::Node;
use tokio::time::Instant;

use super::{Ec2, State, error, xml};
use crate::message::{Answer, Form, Request};
use crate::upstream::Upstream;

/// Writes a state into the description of an instance; what is not running has no public address.
pub(super) fn show(edits: &mut xml::Edits, instance: Node<'_, '_>, state: State) {
    if let Some(node) = xml::child(instance, "instanceState") {
        let (code, name) = (state.code(), state.name());
        edits.replace(node, format!("<instanceState><code>{code}</code><name>{name}</name></instanceState>"));
    }
    if state != State::Running {
        let public = ["association", "ipAddress"];
        for node in instance.descendants().filter(|node| public.contains(&node.tag_name().name())) {
            edits.replace(node, "");
        }
    }
}

impl Ec2 {
    /// Describes instances with their states as time has it.
    pub(super) async fn describe_instances(
        &self,
        request: &Request,
        mut form: Form,
        upstream: &Upstream,
    ) -> Result<Answer> {
        let settings = self.current();
        let now = Instant::now();
        let unseen: Vec<String> = {
            let world = self.world();
            let ids = form.list("InstanceId").into_iter();
            let unseen = |id: &&str| world.lives.get(*id).is_some_and(|life| life.is_unseen(now, &settings));
            ids.filter(unseen).map(str::to_owned).collect()
        };
        if !unseen.is_empty() {
            return Ok(not_found("InvalidInstanceID.NotFound", "instance ID", &unseen));
        }
        let states = take_state_filters(&mut form);
        let answer = self.send(upstream, &request.with_form(&form)).await?;
        if !answer.is_success() {
            return Ok(answer);
        }
        let text = answer.text()?.to_owned();
        let document = xml::parse(&text)?;
        let mut edits = xml::Edits::default();
        let world = self.world();
        for reservation in xml::items(document.root_element(), "reservationSet") {
            let mut kept = 0;
            for instance in xml::items(reservation, "instancesSet") {
                let life = xml::text(instance, &["instanceId"]).and_then(|id| world.lives.get(id));
                let state = life.map(|life| life.state(now, &settings));
                let name = state.map(State::name).or_else(|| xml::text(instance, &["instanceState", "name"]));
                let fits =
                    states.iter().all(|states| states.iter().any(|state| Some(state.as_str()) == name));
                if !fits || life.is_some_and(|life| life.is_unseen(now, &settings)) {
                    edits.replace(instance, "");
                    continue;
                }
                kept += 1;
                if let Some(state) = state {
                    show(&mut edits, instance, state);
                }
            }
            if kept == 0 {
                edits.replace(reservation, "");
            }
        }
        Ok(answer.with_body(edits.apply(&text)))
    }

    /// Makes an interface or an address, and notes when.
    pub(super) async fn make(&self, request: &Request, upstream: &Upstream) -> Result<Answer> {
        let answer = self.send(upstream, request).await?;
        if answer.is_success() {
            for name in ["networkInterfaceId", "allocationId"] {
                for id in xml::all(answer.text()?, name)? {
                    self.world().made.insert(id, Instant::now());
                }
            }
        }
        Ok(answer)
    }

    /// Describes interfaces or addresses without those that were just made.
    pub(super) async fn describe_made(
        &self,
        request: &Request,
        form: &Form,
        upstream: &Upstream,
    ) -> Result<Answer> {
        let interfaces = form.get("Action") == Some("DescribeNetworkInterfaces");
        let (field, id, list, code, what) = if interfaces {
            let code = "InvalidNetworkInterfaceID.NotFound";
            ("NetworkInterfaceId", "networkInterfaceId", "networkInterfaceSet", code, "networkInterface ID")
        } else {
            let code = "InvalidAllocationID.NotFound";
            ("AllocationId", "allocationId", "addressesSet", code, "allocation ID")
        };
        let hidden = Duration::from_millis(self.current().hidden_ms);
        let now = Instant::now();
        let unseen = |made: Option<&Instant>| made.is_some_and(|made| now.duration_since(*made) < hidden);
        let named: Vec<String> = {
            let world = self.world();
            let ids = form.list(field).into_iter();
            ids.filter(|id| unseen(world.made.get(*id))).map(str::to_owned).collect()
        };
        if !named.is_empty() {
            return Ok(not_found(code, what, &named));
        }
        let answer = self.send(upstream, request).await?;
        if !answer.is_success() {
            return Ok(answer);
        }
        let text = answer.text()?.to_owned();
        let document = xml::parse(&text)?;
        let mut edits = xml::Edits::default();
        let world = self.world();
        for item in xml::items(document.root_element(), list) {
            let Some(id) = xml::text(item, &[id]) else { continue };
            if unseen(world.made.get(id)) {
                edits.replace(item, "");
            } else if let (Some(goes), Some(attachment)) =
                (world.goes_with.get(id), xml::child(item, "attachment"))
            {
                edits.set(attachment, "deleteOnTermination", if *goes { "true" } else { "false" });
            }
        }
        Ok(answer.with_body(edits.apply(&text)))
    }
}

/// Takes the filters by state out of a request, since the emulator's states are others, and returns their values.
fn take_state_filters(form: &mut Form) -> Vec<Vec<String>> {
    let mut states = Vec::new();
    for number in form.numbers("Filter") {
        let prefix = format!("Filter.{number}");
        if form.get(&format!("{prefix}.Name")) == Some("instance-state-name") {
            let values = form.list(&format!("{prefix}.Value"));
            states.push(values.into_iter().map(str::to_owned).collect());
            let fields = format!("{prefix}.");
            form.remove(|name| name.starts_with(&fields));
        }
    }
    states
}

fn not_found(code: &str, what: &str, ids: &[String]) -> Answer {
    let list = ids.join(", ");
    let (s, does) = if ids.len() == 1 { ("", "does") } else { ("s", "do") };
    error(400, code, &format!("The {what}{s} '{list}' {does} not exist"))
}
