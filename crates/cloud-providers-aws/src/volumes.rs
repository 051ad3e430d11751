//! Volumes of the user: checked before the launch, attached when the instance runs, detached and never deleted.

use std::collections::HashSet;

use cloud_providers::{Error, ErrorKind, OpContext, Result, Retry, VolumeRequest, placement::Plan};
use futures_util::future::join_all;

use crate::{
    AwsProvider,
    client::{Instance, Query, Volume},
    create::Made,
    remote::{pages, whole},
};

impl AwsProvider {
    /// Checks that the volumes can be attached, and returns the plan without the places in other zones.
    pub(crate) async fn check_volumes(
        &self,
        ctx: &OpContext,
        volumes: &[VolumeRequest],
        plan: &Plan,
    ) -> Result<Option<Plan>> {
        if volumes.is_empty() {
            return Ok(None);
        }
        let ids: Vec<&str> = volumes.iter().map(|v| v.disk_id.as_str()).collect();
        let mut problems = form_problems(&ids);
        if let Some(error) = Error::all(ErrorKind::Config, std::mem::take(&mut problems)) {
            return Err(error);
        }
        let query = Query::ids(ids.iter().copied());
        let found = whole(pages!(self.calls, ctx, "DescribeVolumes", describe_volumes, &query))?;
        for id in &ids {
            match found.iter().find(|v| v.id == *id) {
                None => problems.push(format!("volume {id} does not exist")),
                Some(volume) if volume.state == "available" => {}
                Some(volume) if volume.state == "in-use" && volume.multi_attach => {}
                Some(volume) => problems.push(format!("volume {id} is {}{}", volume.state, held_by(volume))),
            }
        }
        let zones: HashSet<&str> = found.iter().map(|v| v.zone.as_str()).collect();
        if zones.len() > 1 {
            let mut zones: Vec<&str> = zones.iter().copied().collect();
            zones.sort_unstable();
            problems.push(format!("the volumes are in different zones: {}", zones.join(", ")));
        }
        if let Some(error) = Error::all(ErrorKind::Config, problems) {
            return Err(error);
        }
        let Some(zone) = found.first().map(|v| v.zone.clone()) else { return Ok(None) };
        let subnets: Vec<String> = plan.offerings().iter().filter_map(|o| o.subnet.clone()).collect();
        let described = self.known.subnets(ctx, &self.calls, &subnets).await?;
        let why = format!("the volumes are in zone {zone}, and no configured subnet is");
        let fits = |subnet: &Option<String>| match subnet {
            Some(id) => described.iter().any(|s| s.id == *id && s.zone == zone),
            // The template or the default VPC decides; EC2 says when it was wrong.
            None => true,
        };
        plan.clone().retain(&why, |offering| fits(&offering.subnet)).map(Some)
    }

    /// Attaches all volumes at once and waits until EC2 says that they are.
    pub(crate) async fn attach_volumes(
        &self,
        ctx: &OpContext,
        volumes: &[VolumeRequest],
        instance: &Instance,
        made: &Made,
    ) -> Result<()> {
        let mut used: HashSet<String> = instance.volumes.iter().map(|v| v.device.clone()).collect();
        let mut work = Vec::new();
        for volume in volumes {
            let there = instance.volumes.iter().find(|v| v.id == volume.disk_id && v.state != "detached");
            let device = match there {
                Some(_) => None,
                None => Some(free_device(&mut used)?),
            };
            work.push(self.attach(ctx, &volume.disk_id, device, &instance.id, made));
        }
        // Each comes to its end, so that what an undo has to do is known.
        join_all(work).await.into_iter().collect()
    }

    async fn attach(
        &self,
        ctx: &OpContext,
        volume: &str,
        device: Option<String>,
        instance: &str,
        made: &Made,
    ) -> Result<()> {
        if let Some(device) = device {
            made.lock().volumes.push((volume.to_owned(), instance.to_owned()));
            let mut tries = 0;
            let attach = self.calls.persist(ctx, "AttachVolume", self.config.state_timeout, || {
                tries += 1;
                let repeated = tries > 1;
                let device = &device;
                async move {
                    match self.calls.ec2.attach_volume(volume, instance, device).await {
                        // An earlier try whose reply was lost may have done it.
                        Err(error) if repeated && !matches!(error.retry(), Retry::After { .. }) => {
                            match self.volumes.get(ctx, volume.to_owned()).await? {
                                Some(found) if found.attachments.iter().any(|a| a.instance == instance) => {
                                    Ok(())
                                }
                                _ => Err(error),
                            }
                        }
                        answer => answer,
                    }
                }
            });
            let attach = attach.await;
            attach.map_err(|e| e.with("volume", volume))?;
        }
        let probe = |found: Option<Volume>| {
            let Some(found) = found else {
                return Err(Error::new(ErrorKind::NotFound, "the volume is gone").with("volume", volume));
            };
            // A volume may be attached to several instances: only this one counts.
            match found.attachments.iter().find(|a| a.instance == instance) {
                Some(attachment) if attachment.state == "attached" => Ok(Some(())),
                None if found.state == "in-use" && !found.multi_attach => {
                    Err(Error::new(ErrorKind::Conflict, "the volume is attached to another instance")
                        .with("volume", volume)
                        .with("instance", held_by(&found).trim()))
                }
                _ => Ok(None),
            }
        };
        let limit = self.config.state_timeout;
        self.volumes.wait(ctx, "the volume to be attached", &volume.to_owned(), limit, probe).await
    }

    /// Detaches a volume and waits until EC2 says that it is. What is not attached is success.
    pub(crate) async fn detach(&self, ctx: &OpContext, volume: &str, instance: &str) -> Result<()> {
        let limit = self.config.state_timeout;
        let attached = |found: Option<Volume>| {
            found.and_then(|v| {
                v.attachments.into_iter().find(|a| a.instance == instance && a.state != "detached")
            })
        };
        ctx.poll("the volume to be detached", std::time::Duration::ZERO, limit, || async {
            match attached(self.volumes.get(ctx, volume.to_owned()).await?) {
                None => Ok(Some(())),
                Some(attachment) if attachment.state == "detaching" => Ok(None),
                Some(_) => {
                    let call = self.calls.ec2.detach_volume(volume, instance);
                    match self.calls.call(ctx, "DetachVolume", call).await {
                        Err(error) if *error.kind() == ErrorKind::NotFound => Ok(Some(())),
                        answer => answer.map(|()| None),
                    }
                }
            }
        })
        .await
    }
}

/// Refuses ids that EC2 cannot have made, and doubles.
fn form_problems(ids: &[&str]) -> Vec<String> {
    let well_formed = |id: &str| {
        id.strip_prefix("vol-").is_some_and(|hex| {
            hex.len() >= 8 && hex.bytes().all(|b| b.is_ascii_digit() || (b'a'..=b'f').contains(&b))
        })
    };
    let mut problems = Vec::new();
    for (index, id) in ids.iter().enumerate() {
        if !well_formed(id) {
            problems.push(format!(
                "volume {id:?} is no EBS volume, expected vol- and 8 or more hexadecimal digits"
            ));
        } else if ids[..index].contains(id) {
            problems.push(format!("volume {id} is asked for twice"));
        }
    }
    problems
}

fn held_by(volume: &Volume) -> String {
    let holders: Vec<&str> = volume.attachments.iter().map(|a| a.instance.as_str()).collect();
    if holders.is_empty() { String::new() } else { format!(" of {}", holders.join(", ")) }
}

/// Takes the first name of `/dev/xvdb` to `/dev/xvdz`, `/dev/xvdba` to `/dev/xvdbz` … that nothing has.
fn free_device(used: &mut HashSet<String>) -> Result<String> {
    let last = || ('a'..='z').map(|c| c.to_string());
    let names =
        last().skip(1).chain(('b'..='c').flat_map(move |first| last().map(move |l| format!("{first}{l}"))));
    // The image may name the same device in another way.
    let taken = |name: &String| {
        ["/dev/xvd", "/dev/sd", "xvd", "sd"].iter().any(|p| used.contains(&format!("{p}{name}")))
    };
    let free =
        names.map(|n| (taken(&n), format!("/dev/xvd{n}"))).find(|(taken, _)| !taken).map(|(_, name)| name);
    let device =
        free.ok_or_else(|| Error::new(ErrorKind::Quota, "no device name is free for another volume"))?;
    used.insert(device.clone());
    Ok(device)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn devices_are_named_as_by_the_existing_programs() {
        let mut used = HashSet::new();
        let names: Vec<String> = (0..27).map(|_| free_device(&mut used).unwrap()).collect();
        assert_eq!(names[0], "/dev/xvdb");
        assert_eq!(names[24], "/dev/xvdz");
        assert_eq!(names[25..], ["/dev/xvdba", "/dev/xvdbb"]);
    }

    #[test]
    fn a_device_of_the_image_is_passed_by() {
        let mut used = HashSet::from(["/dev/sdb".to_owned(), "/dev/xvdc".to_owned()]);
        assert_eq!(free_device(&mut used).unwrap(), "/dev/xvdd");
    }

    #[test]
    fn ids_of_another_form_and_doubles_are_refused() {
        assert!(form_problems(&["vol-0123abcd", "vol-00000000000000001"]).is_empty());
        for bad in ["", "vol-", "vol-123", "vol-0123ABCD", "disk-01234567", "vol-0123abcg"] {
            assert_eq!(form_problems(&[bad]).len(), 1, "{bad}");
        }
        assert!(form_problems(&["vol-0123abcd", "vol-0123abcd"])[0].contains("twice"));
    }
}
