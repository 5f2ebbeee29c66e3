//! This crate.

use ane_matmul::{
    Activation, BackendId, CompileOptions, Executor, Inputs, MatMul, Tensor, TensorView, TensorViewMut,
    Threads, Weights,
};

use super::{Candidate, Candidates, Kind, Origin, Product, Rotation};
use crate::operands::Operands;
use crate::shapes::{Case, Shape};

struct Own {
    name: &'static str,
    kind: Kind,
}

pub(super) fn add(candidates: &mut Candidates) {
    candidates.add_peer("ane-matmul", crate::machine::own_version());
    candidates.add(Own { name: "ane-matmul", kind: Kind::Packed });
    candidates.add(Own { name: "ane-matmul/dynamic", kind: Kind::Plain });
    candidates.add(Own { name: "ane-matmul/fused", kind: Kind::Fused });
}

impl Candidate for Own {
    fn name(&self) -> &str {
        self.name
    }

    fn kind(&self) -> Kind {
        self.kind
    }

    fn origin(&self) -> Origin {
        Origin::Own
    }

    fn prepare(&self, case: &Case, operands: &Operands) -> Result<Box<dyn Product>, String> {
        let executors = executors(self.kind, case, operands).map_err(|error| error.to_string())?;
        Ok(Box::new(OwnProduct { executors, kind: self.kind, rotation: Rotation::default() }))
    }
}

/// One for each copy of a constant B; a B that comes with the run needs one alone.
fn executors(kind: Kind, case: &Case, operands: &Operands) -> ane_matmul::Result<Vec<Executor>> {
    let Shape { m, n, k } = case.shape;
    let options = CompileOptions::default().threads(Threads::count(case.threads)?);
    let fused = kind == Kind::Fused;
    let activation = if fused { Activation::Gelu } else { Activation::None };
    let product = MatMul::builder(m, n, k)
        .constant_b(kind != Kind::Plain)
        .bias(fused)
        .activation(activation)
        .build()?;
    if kind == Kind::Plain {
        return Ok(vec![product.compile(&BackendId::CPU, None, &options)?.executor()?]);
    }
    let compile = |b: &crate::operands::Buffer| {
        let weights = Weights::from_tensor(Tensor::from_vec(b.as_slice().to_vec(), k, n)?);
        product.compile(&BackendId::CPU, Some(&weights), &options)?.executor()
    };
    operands.b.iter().map(compile).collect()
}

struct OwnProduct {
    executors: Vec<Executor>,
    kind: Kind,
    rotation: Rotation,
}

impl Product for OwnProduct {
    fn run(&mut self, operands: &mut Operands, calls: usize) {
        let Operands { shape: Shape { m, n, k }, a, b, bias, c } = operands;
        let view = "buffers have the shape's sizes";
        let a = TensorView::new(a.as_slice(), *m, *k).expect(view);
        let bias = bias.as_slice();
        for _ in 0..calls {
            let copy = self.rotation.next(b.len());
            let inputs = Inputs::new(a);
            let (executor, inputs) = match self.kind {
                Kind::Plain => {
                    let b = TensorView::new(b[copy].as_slice(), *k, *n).expect(view);
                    (&mut self.executors[0], inputs.b(b))
                }
                Kind::Packed => (&mut self.executors[copy], inputs),
                Kind::Fused => (&mut self.executors[copy], inputs.bias(bias)),
            };
            let c = TensorViewMut::new(c.as_mut_slice(), *m, *n).expect(view);
            executor.run(&inputs, c).expect("a valid run");
        }
    }
}
