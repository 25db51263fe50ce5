//! What offloading changes in a memory plan.

use super::{
    Dtype, offload::Offloading, plan::DeviceMemory, plan::Load, plan::SINGLE, plan::bytes,
};

impl Load<'_> {
    /// Takes what waits in host memory from the device, and returns it. Until it has trained, a block is on the host once for
    /// both models.
    pub(super) fn offloaded(&self, device: &mut DeviceMemory) -> DeviceMemory {
        let Some(offloading) = self.config.offload else {
            return DeviceMemory::default();
        };
        let (share, block) = (self.share, self.size.block);
        let number = self.config.dtype.width();
        let active = self.active_blocks();
        let frozen = share.blocks - active;
        let trained = self.config.draws.zip(self.config.lisa_blocks);
        let own = match trained {
            Some((draws, blocks)) if share.w => share.blocks.min(2 * blocks * draws),
            _ => share.blocks,
        };
        let mut host = DeviceMemory {
            u: bytes(&[usize::from(share.u), own - active, block, number]),
            w: bytes(&[usize::from(share.w), frozen, block, number]),
            ..DeviceMemory::default()
        };
        device.u -= host.u;
        device.w -= host.w;
        if frozen > 0 {
            device.copies = bytes(&[self.passes(), block, number]);
        }
        if offloading == Offloading::FrozenAndMoments {
            (host.masters, host.moments) = (device.masters, device.moments);
            (device.masters, device.moments) = (0, 0);
        }
        host.total = host.u + host.w + host.masters + host.moments;
        host
    }

    /// Bytes that a step moves between the device and `host`, see [`MemoryPlan::bytes_moved`](super::MemoryPlan::bytes_moved).
    pub(super) fn moved(&self, host: &DeviceMemory) -> u64 {
        if self.config.offload.is_none() {
            return 0;
        }
        let frozen = self.share.blocks - self.active_blocks();
        let (samples, _) = self.micro_batch();
        let gradients = 2 * usize::from(self.share.w) + usize::from(self.share.u);
        let copies = 2 * gradients * self.samples().div_ceil(samples);
        let of_blocks = [copies, frozen, self.size.block, self.config.dtype.width()];
        bytes(&of_blocks) + 2 * (host.masters + host.moments)
    }

    /// Bytes of what visits the device for the update of the largest parameter: of the embedding or the head, or of a block's
    /// largest, which is no larger than the block.
    pub(super) fn visiting(&self) -> u64 {
        if self.config.offload != Some(Offloading::FrozenAndMoments) {
            return 0;
        }
        let outside = (self.share.embedding || self.share.head) && !self.config.freeze_others;
        let largest = match outside {
            true => self.size.vocabulary * self.size.width,
            false => self.size.block,
        };
        let half = self.config.dtype != Dtype::Float32;
        bytes(&[largest, self.config.moments + usize::from(half), SINGLE])
    }
}
