//! What the changing calls do.

use cloud_providers::Result;
use tokio::time::Instant;

use super::{
    fault::refused,
    state::{Nic, State},
};
use crate::client::{
    Address, CreateInterface, Instance, Interface, InterfaceAttachment, RunInstances, State as Doing, Tags,
};

/// The most bytes of user data.
const USER_DATA: usize = 16 * 1024;

impl State {
    pub(super) fn run(&mut self, request: &RunInstances) -> Result<Instance> {
        let op = "RunInstances";
        let now = Instant::now();
        if let Some((before, id)) = self.replays.get(&request.client_token) {
            if before != request {
                return Err(refused(
                    op,
                    "IdempotentParameterMismatch",
                    "the value was used with other parameters",
                ));
            }
            return self
                .view(id, now)
                .ok_or_else(|| refused(op, "IdempotentInstanceTerminated", "it is gone"));
        }
        self.check_launch(request)?;
        let id = self.launch(request);
        self.replays.insert(request.client_token.clone(), (request.clone(), id.clone()));
        self.view(&id, now).ok_or_else(|| refused(op, "InternalError", "the instance is not there"))
    }

    /// Says what EC2 would say to a launch that cannot be.
    pub(super) fn check_launch(&self, request: &RunInstances) -> Result<()> {
        let op = "RunInstances";
        let template = request.launch_template.as_ref();
        let known = template.and_then(|t| self.templates.get(&t.name));
        if template.is_some() && known.is_none() {
            return Err(refused(op, "InvalidLaunchTemplateName.NotFoundException", "no such template"));
        }
        let image = request.image.clone().or_else(|| known.and_then(|t| t.image.clone()));
        let Some(image) = image else { return Err(refused(op, "MissingParameter", "no image is named")) };
        let Some(image) = self.images.get(&image) else {
            return Err(refused(
                op,
                "InvalidAMIID.NotFound",
                &format!("the image id '[{image}]' does not exist"),
            ));
        };
        let name = request.instance_type.clone().or_else(|| known.and_then(|t| t.instance_type.clone()));
        let name = name.unwrap_or_else(|| "m1.small".into());
        let Some(info) = self.types.get(&name) else {
            return Err(refused(
                op,
                "InvalidParameterValue",
                &format!("invalid value '{name}' for InstanceType"),
            ));
        };
        if image.architecture.as_ref().is_some_and(|a| !info.architectures.contains(a)) {
            return Err(refused(op, "InvalidParameterValue", "the architectures of image and type differ"));
        }
        if request.sev_snp && !info.sev_snp {
            return Err(refused(op, "InvalidParameterCombination", "the type has no AMD SEV-SNP"));
        }
        if request.user_data.len() > USER_DATA {
            return Err(refused(op, "InvalidParameterValue", "User data is limited to 16384 bytes"));
        }
        if request.interfaces.len() > 1 && request.interfaces.iter().any(|i| i.public.is_some()) {
            let message =
                "associatePublicIPAddress cannot be specified when launching with multiple interfaces";
            return Err(refused(op, "InvalidParameterCombination", message));
        }
        for interface in &request.interfaces {
            let Some(subnet) = &interface.subnet else { continue };
            let Some((_, number)) = self.subnets.get(subnet) else {
                return Err(refused(
                    op,
                    "InvalidSubnetID.NotFound",
                    &format!("the subnet '{subnet}' does not exist"),
                ));
            };
            self.check_address(op, interface.private_address, *number)?;
        }
        if let Some(root) = &request.root_volume {
            let mapped = image.mappings.iter().find(|m| m.device == root.device);
            if root
                .size_gib
                .is_some_and(|size| mapped.and_then(|m| m.size_gib).is_some_and(|least| size < least))
            {
                return Err(refused(
                    op,
                    "InvalidBlockDeviceMapping",
                    "the volume is smaller than its snapshot",
                ));
            }
        }
        let paid = if request.spot { "spot" } else { "on-demand" };
        let subnet = request.interfaces.first().and_then(|i| i.subnet.as_deref()).unwrap_or_default();
        let place = format!("{name} {paid} {subnet}");
        match self.shortages.iter().find(|(part, _)| place.contains(part.as_str())) {
            Some((_, code)) => Err(refused(op, code, &format!("no room for {place}"))),
            None => Ok(()),
        }
    }

    fn check_address(&self, op: &str, wished: Option<std::net::IpAddr>, number: u8) -> Result<()> {
        match wished {
            Some(std::net::IpAddr::V4(address)) if address.octets()[..2] != [10, number] => Err(refused(
                op,
                "InvalidParameterValue",
                "the address does not fall within the subnet's range",
            )),
            Some(address)
                if self.interfaces.values().any(|n| n.interface.private_addresses.contains(&address)) =>
            {
                Err(refused(op, "InvalidIPAddress.InUse", "the address is in use"))
            }
            _ => Ok(()),
        }
    }

    pub(super) fn end(&mut self, id: &str) -> Result<()> {
        match self.instances.get(id) {
            Some(machine) if Instant::now() >= machine.shown_at => {
                self.terminate(id, self.shutdown);
                Ok(())
            }
            _ => {
                let message = format!("the instance ID '{id}' does not exist");
                Err(refused("TerminateInstances", "InvalidInstanceID.NotFound", &message))
            }
        }
    }

    pub(super) fn new_interface(&mut self, request: &CreateInterface) -> Result<Interface> {
        let op = "CreateNetworkInterface";
        if let Some(nic) =
            self.interface_replays.get(&request.client_token).and_then(|id| self.interfaces.get(id))
        {
            return Ok(nic.interface.clone());
        }
        let Some((_, number)) = self.subnets.get(&request.subnet) else {
            return Err(refused(op, "InvalidSubnetID.NotFound", "no such subnet"));
        };
        let number = *number;
        self.check_address(op, request.private_address, number)?;
        let id = self.id("eni");
        let n = self.next;
        let interface = Interface {
            id: id.clone(),
            status: "available".into(),
            attachment: None,
            private_addresses: vec![
                request.private_address.unwrap_or_else(|| super::address([10, number], n)),
            ],
            tags: request.tags.clone(),
        };
        let shown_at = Instant::now() + self.lag;
        let nic = Nic { interface: interface.clone(), shown_at, comes_with: None, public: None };
        self.interfaces.insert(id.clone(), nic);
        self.interface_replays.insert(request.client_token.clone(), id);
        Ok(interface)
    }

    pub(super) fn attach_nic(&mut self, id: &str, instance: &str, index: u32) -> Result<String> {
        let op = "AttachNetworkInterface";
        let Some(found) = self.view(instance, Instant::now()) else {
            return Err(refused(op, "InvalidInstanceID.NotFound", "no such instance"));
        };
        if found.state != Doing::Running {
            return Err(refused(op, "IncorrectInstanceState", "the instance is not running"));
        }
        let attachment = self.id("eni-attach");
        let Some(nic) = self.interfaces.get_mut(id) else {
            return Err(refused(op, "InvalidNetworkInterfaceID.NotFound", "no such interface"));
        };
        if nic.interface.attachment.is_some() {
            return Err(refused(op, "InvalidNetworkInterface.InUse", "the interface is in use"));
        }
        if found.interfaces.iter().any(|i| i.device_index == index) {
            return Err(refused(op, "InvalidParameterValue", "the instance has an interface at this index"));
        }
        nic.interface.status = "in-use".into();
        nic.interface.attachment = Some(InterfaceAttachment {
            id: attachment.clone(),
            instance: Some(instance.into()),
            device_index: index,
            state: "attached".into(),
            delete_on_termination: false,
        });
        Ok(attachment)
    }

    pub(super) fn modify_nic(&mut self, id: &str, attachment: &str, delete: bool) -> Result<()> {
        let nic = self.interfaces.get_mut(id);
        match nic.and_then(|n| n.interface.attachment.as_mut()).filter(|a| a.id == attachment) {
            Some(found) => {
                found.delete_on_termination = delete;
                Ok(())
            }
            None => Err(refused(
                "ModifyNetworkInterfaceAttribute",
                "InvalidAttachmentID.NotFound",
                "no such attachment",
            )),
        }
    }

    pub(super) fn detach_nic(&mut self, attachment: &str) -> Result<()> {
        let mut nics = self.interfaces.values_mut();
        match nics.find(|n| n.interface.attachment.as_ref().is_some_and(|a| a.id == attachment)) {
            Some(nic) => {
                nic.interface.attachment = None;
                nic.interface.status = "available".into();
                Ok(())
            }
            None => {
                Err(refused("DetachNetworkInterface", "InvalidAttachmentID.NotFound", "no such attachment"))
            }
        }
    }

    pub(super) fn delete_nic(&mut self, id: &str) -> Result<()> {
        let op = "DeleteNetworkInterface";
        match self.interfaces.get(id) {
            None => Err(refused(op, "InvalidNetworkInterfaceID.NotFound", "no such interface")),
            Some(nic) if nic.interface.attachment.is_some() => {
                Err(refused(op, "InvalidNetworkInterface.InUse", "the interface is in use"))
            }
            Some(_) => {
                self.interfaces.remove(id);
                Ok(())
            }
        }
    }

    pub(super) fn allocate(&mut self, tags: &Tags) -> Address {
        let allocation = self.id("eipalloc");
        let address = Address {
            allocation: allocation.clone(),
            public_address: Some(super::address([198, 51], self.next)),
            tags: tags.clone(),
            ..Address::default()
        };
        self.addresses.insert(allocation, (address.clone(), Instant::now() + self.lag));
        address
    }

    pub(super) fn associate(&mut self, allocation: &str, interface: &str) -> Result<String> {
        let op = "AssociateAddress";
        let association = self.id("eipassoc");
        let Some(nic) = self.interfaces.get(interface) else {
            return Err(refused(op, "InvalidNetworkInterfaceID.NotFound", "no such interface"));
        };
        let instance = nic.interface.attachment.as_ref().and_then(|a| a.instance.clone());
        let Some((address, _)) = self.addresses.get_mut(allocation) else {
            return Err(refused(op, "InvalidAllocationID.NotFound", "no such allocation"));
        };
        if address.association.is_some() {
            return Err(refused(op, "Resource.AlreadyAssociated", "the address is associated"));
        }
        address.association = Some(association.clone());
        address.interface = Some(interface.into());
        address.instance = instance;
        Ok(association)
    }

    pub(super) fn disassociate(&mut self, association: &str) -> Result<()> {
        let mut addresses = self.addresses.values_mut();
        match addresses.find(|(a, _)| a.association.as_deref() == Some(association)) {
            Some((address, _)) => {
                (address.association, address.instance, address.interface) = (None, None, None);
                Ok(())
            }
            None => {
                Err(refused("DisassociateAddress", "InvalidAssociationID.NotFound", "no such association"))
            }
        }
    }

    pub(super) fn give_back(&mut self, allocation: &str) -> Result<()> {
        let op = "ReleaseAddress";
        match self.addresses.get(allocation) {
            None => Err(refused(op, "InvalidAllocationID.NotFound", "no such allocation")),
            Some((address, _)) if address.association.is_some() => {
                Err(refused(op, "InvalidIPAddress.InUse", "the address is associated"))
            }
            Some(_) => {
                self.addresses.remove(allocation);
                Ok(())
            }
        }
    }

    pub(super) fn detach(&mut self, volume: &str, instance: &str) -> Result<()> {
        let op = "DetachVolume";
        let Some(disk) = self.volumes.get_mut(volume) else {
            return Err(refused(op, "InvalidVolume.NotFound", "no such volume"));
        };
        let before = disk.volume.attachments.len();
        disk.volume.attachments.retain(|a| a.instance != instance);
        if disk.volume.attachments.len() == before {
            return Err(refused(op, "InvalidAttachment.NotFound", "it is not attached"));
        }
        if disk.volume.attachments.is_empty() {
            disk.volume.state = "available".into();
        }
        Ok(())
    }
}
