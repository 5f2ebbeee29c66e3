//! Attention as a step of a graph.

use std::ptr;

use super::elementwise::broadcast_strides;
use super::product::Scratches;
use super::step::Frame;
use crate::backend::cpu::Cpu;
use crate::backend::cpu::attention::{Attention, AttentionOperands, Heads, MaskKind};
use crate::backend::cpu::microkernel::instances;
use crate::description::element::ElementType;
use crate::error::{Error, Result};
use crate::graph;
use crate::graph::description::{Graph, NodeInfo};
use crate::graph::infer::AttentionSizes;
use crate::graph::shape::Shape;

pub(crate) struct AttentionStep {
    /// Of the largest batch.
    largest: Attention,
    attributes: graph::Attention,
    /// The scratch memory of a thread.
    pub words: usize,
}

impl AttentionStep {
    pub(crate) fn new(
        cpu: &Cpu,
        graph: &Graph,
        node: &NodeInfo,
        attributes: &graph::Attention,
    ) -> Result<Self> {
        let type_of = |input: usize| {
            let value = node.inputs.get(input).copied().flatten();
            value.map(|value| graph.values[value].tensor_type)
        };
        let shape = |input: usize| type_of(input).map_or(Shape::SCALAR, |input| input.shape);
        let sizes = attributes.sizes(&shape(0), &shape(1), &shape(2)).map_err(Error::graph)?;
        let AttentionSizes { batch, q_heads, kv_heads, queries, keys, qk_size, v_size } = sizes;
        #[allow(clippy::cast_precision_loss, reason = "head sizes are small")]
        let scale = attributes.scale.unwrap_or_else(|| 1.0 / (qk_size as f32).sqrt());
        let largest = Attention {
            kernels: &instances::of(cpu.isa).f32,
            blocking: cpu.blocking[0],
            scale,
            is_causal: attributes.is_causal,
            mask: match type_of(3).map(|mask| mask.element) {
                None => MaskKind::None,
                Some(ElementType::Bool) => MaskKind::Seen,
                Some(_) => MaskKind::Added,
            },
            batch,
            q_heads,
            kv_heads,
            queries,
            keys,
            size: qk_size,
            value_size: v_size,
        };
        Ok(Self { largest, attributes: attributes.clone(), words: largest.scratch_words() })
    }

    /// For a Q of these dimensions, which differ from the largest in the batch.
    pub(crate) fn sized(&self, q: &Shape) -> Attention {
        Attention { batch: q.dims().first().copied().unwrap_or(0), ..self.largest }
    }

    /// Computes a part of y from Q, K, V and the mask.
    ///
    /// # Safety
    /// As [`super::step::Step::run`].
    pub(crate) unsafe fn run(
        &self,
        ([q, k, v], mask, y): ([usize; 3], Option<usize>, usize),
        (part, parts): (usize, usize),
        frame: &Frame<'_>,
        scratch: &mut Scratches,
    ) {
        let attention = self.sized(&frame.shape(q));
        let Attention { batch, q_heads, kv_heads, queries, keys, size, value_size, .. } = attention;
        let scores = [batch, q_heads, queries, keys];
        let scores = (0..4).fold(Shape::new(&[1; 4]).unwrap_or(Shape::SCALAR), |shape, axis| {
            shape.with_dim(axis, scores[axis])
        });
        let strides = mask.map_or([0; 4], |mask| {
            let strides = broadcast_strides(&frame.shape(mask), &scores);
            [strides[0], strides[1], strides[2], strides[3]]
        });
        let operands = AttentionOperands {
            q: self.heads(frame.start(q).cast(), [q_heads, queries, size]),
            k: self.heads(frame.start(k).cast(), [kv_heads, keys, size]),
            v: self.heads(frame.start(v).cast(), [kv_heads, keys, value_size]),
            y: self.heads(frame.start_mut(y).cast(), [q_heads, queries, value_size]),
            mask: mask.map_or(ptr::null(), |mask| frame.start(mask)),
            mask_strides: strides,
        };
        // SAFETY: by this function's own contract; the scratch memory is as long as the largest batch's.
        unsafe { attention.piece(&operands, part, parts, scratch.attention.start_mut().cast()) };
    }

    /// Packed elements of heads, places and a size, in the order that the attributes say.
    const fn heads<P: Copy>(&self, start: P, [heads, places, size]: [usize; 3]) -> Heads<P> {
        let item = heads * places * size;
        match self.attributes.heads {
            None => Heads { start, item, head: places * size, row: size },
            Some(_) => Heads { start, item, head: size, row: heads * size },
        }
    }
}
