//! Ends: instances that were terminated before, and what goes with an instance.

use anyhow::Result;
use tokio::time::Instant;

use super::{Ec2, Life, State, error, success, xml};
use crate::message::{Answer, Form, Request};
use crate::upstream::Upstream;

impl Ec2 {
    /// Terminates instances, whatever state they are in, with the interfaces that go with them.
    pub(super) async fn terminate(
        &self,
        request: &Request,
        form: &Form,
        upstream: &Upstream,
    ) -> Result<Answer> {
        let ids: Vec<String> = form.list("InstanceId").into_iter().map(str::to_owned).collect();
        let settings = self.current();
        let now = Instant::now();
        let named = |prefix: &str| -> Vec<(String, String)> {
            ids.iter().enumerate().map(|(i, id)| (format!("{prefix}.{}", i + 1), id.clone())).collect()
        };
        let forgotten = |id: &String| {
            let world = self.world();
            let life = world.lives.get(id);
            life.is_some_and(|life| life.terminated.is_some() && life.is_unseen(now, &settings))
        };
        if let Some(id) = ids.iter().find(|id| forgotten(id)) {
            let message = format!("The instance ID '{id}' does not exist");
            return Ok(error(400, "InvalidInstanceID.NotFound", &message));
        }
        // One unknown id and the service does nothing.
        let answer = self.ask(upstream, request, "DescribeInstances", &named("InstanceId")).await?;
        if !answer.is_success() {
            return Ok(answer);
        }
        let (mut before, mut living) = (Vec::new(), Vec::new());
        {
            let text = answer.text()?;
            let document = xml::parse(text)?;
            let mut world = self.world();
            for instance in xml::items(document.root_element(), "instancesSet") {
                let Some(id) = xml::text(instance, &["instanceId"]) else { continue };
                let there = xml::text(instance, &["instanceState", "name"]) != Some("terminated");
                let life = world
                    .lives
                    .entry(id.to_owned())
                    .or_insert(Life { launched: now, terminated: (!there).then_some(now) });
                before.push((id.to_owned(), life.state(now, &settings)));
                if there {
                    living.push(id.to_owned());
                }
            }
        }
        for id in &living {
            if let Some(refused) = self.end(request, id, upstream).await? {
                return Ok(refused);
            }
        }
        let items: String = before.into_iter().map(|(id, previous)| item(&id, previous)).collect();
        Ok(success("TerminateInstances", &format!("<instancesSet>{items}</instancesSet>")))
    }

    /// Ends one instance that lives; returns a refusal, such as one that is protected against it.
    async fn end(&self, request: &Request, id: &str, upstream: &Upstream) -> Result<Option<Answer>> {
        let filter = [("Filter.1.Name", "attachment.instance-id"), ("Filter.1.Value.1", id)].map(owned);
        let found = self.ask(upstream, request, "DescribeNetworkInterfaces", &filter).await?;
        let mut interfaces = Vec::new();
        if found.is_success() {
            let document = xml::parse(found.text()?)?;
            for item in xml::items(document.root_element(), "networkInterfaceSet") {
                let Some(eni) = xml::text(item, &["networkInterfaceId"]) else { continue };
                let attachment = xml::text(item, &["attachment", "attachmentId"]).unwrap_or_default();
                let known = self.world().goes_with.get(eni).copied();
                let said = xml::text(item, &["attachment", "deleteOnTermination"]) == Some("true");
                interfaces.push((eni.to_owned(), attachment.to_owned(), known.unwrap_or(said)));
            }
        }
        for (eni, _, goes) in &interfaces {
            if *goes {
                self.let_go_of_address(request, eni, upstream).await?;
            }
        }
        let fields = [("InstanceId.1", id)].map(owned);
        let answer = self.ask(upstream, request, "TerminateInstances", &fields).await?;
        if !answer.is_success() {
            return Ok(Some(answer));
        }
        if let Some(life) = self.world().lives.get_mut(id) {
            life.terminated = Some(Instant::now());
        }
        for (eni, attachment, goes) in interfaces {
            // The emulator may have deleted it: that is what was wanted.
            if goes {
                let fields = [("NetworkInterfaceId", eni.as_str())].map(owned);
                self.ask(upstream, request, "DeleteNetworkInterface", &fields).await?;
            } else {
                let fields = [("AttachmentId", attachment.as_str())].map(owned);
                self.ask(upstream, request, "DetachNetworkInterface", &fields).await?;
            }
        }
        Ok(None)
    }

    /// An address leaves an interface that goes, and stays allocated.
    async fn let_go_of_address(&self, request: &Request, eni: &str, upstream: &Upstream) -> Result<()> {
        let filter = [("Filter.1.Name", "network-interface-id"), ("Filter.1.Value.1", eni)].map(owned);
        let found = self.ask(upstream, request, "DescribeAddresses", &filter).await?;
        if found.is_success() {
            for association in xml::all(found.text()?, "associationId")? {
                let fields = [("AssociationId", association.as_str())].map(owned);
                self.ask(upstream, request, "DisassociateAddress", &fields).await?;
            }
        }
        Ok(())
    }

    /// Notes whether an interface goes with its instance: the emulator has no place for it.
    pub(super) async fn modify_interface(
        &self,
        request: &Request,
        form: &Form,
        upstream: &Upstream,
    ) -> Result<Answer> {
        let answer = self.send(upstream, request).await?;
        if let (true, Some(eni), Some(goes)) =
            (answer.is_success(), form.get("NetworkInterfaceId"), form.get("Attachment.DeleteOnTermination"))
        {
            self.world().goes_with.insert(eni.to_owned(), goes == "true");
        }
        Ok(answer)
    }

    /// Deletes an interface unless it is in use: the emulator would.
    pub(super) async fn delete_interface(
        &self,
        request: &Request,
        form: &Form,
        upstream: &Upstream,
    ) -> Result<Answer> {
        let eni = form.get("NetworkInterfaceId").unwrap_or_default();
        let fields = [("NetworkInterfaceId.1", eni)].map(owned);
        let found = self.ask(upstream, request, "DescribeNetworkInterfaces", &fields).await?;
        if found.is_success() && found.text()?.contains("<status>in-use</status>") {
            let message = format!("Network interface '{eni}' is currently in use.");
            return Ok(error(400, "InvalidParameterValue", &message));
        }
        self.send(upstream, request).await
    }

    /// Releases an address unless it is in use: the emulator would.
    pub(super) async fn release_address(
        &self,
        request: &Request,
        form: &Form,
        upstream: &Upstream,
    ) -> Result<Answer> {
        let id = form.get("AllocationId").unwrap_or_default();
        let fields = [("AllocationId.1", id)].map(owned);
        let found = self.ask(upstream, request, "DescribeAddresses", &fields).await?;
        if found.is_success() && !xml::all(found.text()?, "associationId")?.is_empty() {
            let message = format!("Address with allocation ID '{id}' is in use.");
            return Ok(error(400, "InvalidIPAddress.InUse", &message));
        }
        self.send(upstream, request).await
    }
}

fn owned((name, value): (&str, &str)) -> (String, String) {
    (name.to_owned(), value.to_owned())
}

fn item(id: &str, previous: State) -> String {
    let current = if previous == State::Terminated { State::Terminated } else { State::ShuttingDown };
    let state = |name: &str, state: State| {
        format!("<{name}><code>{}</code><name>{}</name></{name}>", state.code(), state.name())
    };
    let (current, previous) = (state("currentState", current), state("previousState", previous));
    format!("<item><instanceId>{id}</instanceId>{current}{previous}</item>")
}
