//! This crate.

use ane_matmul::{
    Activation, AnyView, BackendId, CompileOptions, ElementType, ElementTypes, Executor, Inputs, Layout,
    MatMul, TensorView, TensorViewMut, Threads, Weights,
};

use super::{Candidate, Candidates, Kind, Origin, Product, Rotation};
use crate::operands::{Narrow, Operands};
use crate::shapes::{Case, Precision, Shape};

struct Own {
    name: &'static str,
    kind: Kind,
    /// The type of a weight-only B.
    weights: Option<ElementType>,
}

pub(super) fn add(candidates: &mut Candidates) {
    candidates.add_peer("ane-matmul", crate::machine::own_version());
    let own = |name, kind| Own { name, kind, weights: None };
    candidates.add(own("ane-matmul", Kind::Packed));
    candidates.add(own("ane-matmul/dynamic", Kind::Plain));
    candidates.add(own("ane-matmul/fused", Kind::Fused));
    let of_weights = |name, element| Own { name, kind: Kind::Packed, weights: Some(element) };
    candidates.add(of_weights("ane-matmul/int8-weights", ElementType::I8));
    candidates.add(of_weights("ane-matmul/int4-weights", ElementType::I4));
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

    fn does(&self, precision: Precision) -> bool {
        let fused_f64 = precision == Precision::F64 && self.kind == Kind::Fused;
        !fused_f64 && self.weights.is_some() == (precision == Precision::Weights)
    }

    fn does_batches(&self) -> bool {
        true
    }

    fn prepare(&self, case: &Case, operands: &Operands) -> Result<Box<dyn Product>, String> {
        let executors = self.executors(case, operands).map_err(|error| error.to_string())?;
        Ok(Box::new(OwnProduct { executors, kind: self.kind, rotation: Rotation::default() }))
    }
}

impl Own {
    /// One for each copy of a constant B; a dynamic B needs one alone.
    fn executors(&self, case: &Case, operands: &Operands) -> ane_matmul::Result<Vec<Executor>> {
        let Shape { batch, m, n, k } = case.shape;
        let options = CompileOptions::default().threads(Threads::count(case.threads)?);
        let fused = self.kind == Kind::Fused;
        let activation = if fused { Activation::Gelu } else { Activation::None };
        let types = match case.precision {
            Precision::F32 | Precision::Weights => ElementTypes::F32,
            Precision::Bf16 => ElementTypes::BF16,
            Precision::F16 => ElementTypes::F16,
            Precision::Int8 => ElementTypes::INT8,
            Precision::F64 => ElementTypes::F64,
        };
        let product = MatMul::builder(m, n, k).batch(batch).types(types).bias(fused).activation(activation);
        if self.kind == Kind::Plain {
            return Ok(vec![product.build()?.compile_with(&BackendId::CPU, &options)?.executor()?]);
        }
        let compile = |weights: &Weights| {
            product.clone().with_weights(weights)?.compile_with(&BackendId::CPU, &options)?.executor()
        };
        if let (Narrow::Weights(quantized), Some(element)) = (&operands.narrow, self.weights) {
            let of_element = if element == ElementType::I8 { &quantized.int8 } else { &quantized.int4 };
            return of_element.iter().map(compile).collect();
        }
        (0..operands.copies_of_b()).map(|copy| compile(&Weights::new(b(operands, copy))?)).collect()
    }
}

fn a(operands: &Operands) -> AnyView<'_> {
    let Shape { batch, m, k, .. } = operands.shape;
    match &operands.narrow {
        Narrow::Nothing | Narrow::Weights(_) => view(operands.a.as_slice(), batch, m, k),
        Narrow::Bf16(pair) => view(pair.a.as_slice(), batch, m, k),
        Narrow::F16(pair) => view(pair.a.as_slice(), batch, m, k),
        Narrow::Int8(pair) => view(pair.a.as_slice(), batch, m, k),
        Narrow::F64(wide) => view(wide.pair.a.as_slice(), batch, m, k),
    }
}

fn b(operands: &Operands, copy: usize) -> AnyView<'_> {
    let Shape { batch, n, k, .. } = operands.shape;
    match &operands.narrow {
        Narrow::Nothing | Narrow::Weights(_) => view(operands.b[copy].as_slice(), batch, k, n),
        Narrow::Bf16(pair) => view(pair.b[copy].as_slice(), batch, k, n),
        Narrow::F16(pair) => view(pair.b[copy].as_slice(), batch, k, n),
        Narrow::Int8(pair) => view(pair.b[copy].as_slice(), batch, k, n),
        Narrow::F64(wide) => view(wide.pair.b[copy].as_slice(), batch, k, n),
    }
}

fn view<'a, T: ane_matmul::Element>(data: &'a [T], batch: usize, rows: usize, cols: usize) -> AnyView<'a>
where
    TensorView<'a, T>: Into<AnyView<'a>>,
{
    TensorView::with_layout(data, Layout::packed(batch, rows, cols).expect(VALID)).expect(VALID).into()
}

const VALID: &str = "buffers have the shape's sizes";

struct OwnProduct {
    executors: Vec<Executor>,
    kind: Kind,
    rotation: Rotation,
}

impl Product for OwnProduct {
    fn run(&mut self, operands: &mut Operands, calls: usize) {
        let Shape { batch, m, n, .. } = operands.shape;
        let mut c = std::mem::take(&mut operands.c);
        let mut wide_c = match &mut operands.narrow {
            Narrow::F64(wide) => Some(std::mem::take(&mut wide.c)),
            _ => None,
        };
        let a = a(operands);
        let bias = operands.bias.as_slice();
        for _ in 0..calls {
            let copy = self.rotation.next(operands.copies_of_b());
            let inputs = Inputs::new(a);
            let (executor, inputs) = match self.kind {
                Kind::Plain => (&mut self.executors[0], inputs.b(b(operands, copy))),
                Kind::Packed => (&mut self.executors[copy], inputs),
                Kind::Fused => (&mut self.executors[copy], inputs.bias(bias)),
            };
            let layout = Layout::packed(batch, m, n).expect(VALID);
            match &mut wide_c {
                Some(c) => {
                    executor.run(inputs, TensorViewMut::with_layout(c.as_mut_slice(), layout).expect(VALID))
                }
                None => {
                    executor.run(inputs, TensorViewMut::with_layout(c.as_mut_slice(), layout).expect(VALID))
                }
            }
            .expect("a valid run");
        }
        if let (Narrow::F64(wide), Some(c)) = (&mut operands.narrow, wide_c) {
            wide.c = c;
        }
        operands.c = c;
    }
}
