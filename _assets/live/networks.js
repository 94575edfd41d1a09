// Finite networks in the NTK parameterization, trained by full-batch gradient descent on half the mean square error.

// Normal random numbers from a seed: those of Box and Muller from uniform ones of a mixed counter (splitmix32).
function normals(seed) {
  let state = seed >>> 0, spare = null
  const uniform = () => {
    state = (state + 0x9e3779b9) >>> 0
    let z = state
    z = Math.imul(z ^ (z >>> 16), 0x21f0aaad)
    z = Math.imul(z ^ (z >>> 15), 0x735a2d97)
    return ((z ^ (z >>> 15)) >>> 0) / 2 ** 32
  }
  return () => {
    if (spare !== null) { const value = spare; spare = null; return value }
    const radius = Math.sqrt(-2 * Math.log(1 - uniform())), angle = 2 * Math.PI * uniform()
    spare = radius * Math.sin(angle)
    return radius * Math.cos(angle)
  }
}

// erf by its Taylor series around the nearest of many nodes, whose coefficients are computed once.
const erf = (() => {
  const scale = 128, last = 6, terms = 7, nodes = last * scale + 1
  const table = new Float64Array(nodes * terms)
  for (let i = 0; i < nodes; i++) {
    const z = i / scale
    let term = 2 / Math.sqrt(Math.PI) * z * Math.exp(-z * z), sum = 0
    for (let k = 1; k < 400 && sum + term !== sum; k++) { sum += term; term *= 2 * z * z / (2 * k + 1) }
    const c = [2 / Math.sqrt(Math.PI) * Math.exp(-z * z)] // of the derivative y' = -2 z y
    for (let k = 0; k < terms - 2; k++) c.push((-2 * z * c[k] - 2 * (c[k - 1] ?? 0)) / (k + 1))
    table.set([sum, ...c.map((value, k) => value / (k + 1))], i * terms)
  }
  return x => {
    const z = x < 0 ? -x : x
    if (!(z < last)) return Math.sign(x)
    const i = (z * scale + 0.5) | 0, d = z - i / scale, end = i * terms
    let sum = 0
    for (let k = end + terms - 1; k >= end; k--) sum = sum * d + table[k]
    return x < 0 ? -sum : sum
  }
})()

const ACTIVATIONS = {
  relu: { value: z => (z > 0 ? z : 0), slope: z => (z > 0 ? 1 : 0) },
  erf: { value: erf, slope: z => 2 / Math.sqrt(Math.PI) * Math.exp(-z * z) }
}

// One network: layers {weights (fanOut x fanIn, row by row), biases, scale of each}, the readout last. What depends on a
// unit and a point lies unit by unit, in arrays that are kept from step to step.
class Network {
  constructor(dimension, { width, depth, activation, wStd, bStd }, draw) {
    const sizes = [dimension, ...new Array(depth).fill(width), 1]
    this.activation = ACTIVATIONS[activation]
    this.layers = sizes.slice(1).map((fanOut, i) => ({
      fanIn: sizes[i], fanOut, weights: Float64Array.from({ length: fanOut * sizes[i] }, draw),
      biases: Float64Array.from({ length: fanOut }, draw), wScale: wStd / Math.sqrt(sizes[i]), bScale: bStd
    }))
    this.kept = new Map()
  }

  // The arrays for these points: the inputs h of each layer, its pre-activations z and their sensitivities s.
  arrays(x) {
    if (!this.kept.has(x)) {
      const n = x.length, numbers = size => new Float64Array(size * n)
      const inputs = numbers(x[0].length).map((_, at) => x[at % n][Math.floor(at / n)])
      this.kept.set(x, this.layers.map(({ fanOut }, l) => (
        { z: numbers(fanOut), s: numbers(fanOut), h: l ? numbers(this.layers[l - 1].fanOut) : inputs })))
    }
    return this.kept.get(x)
  }

  // The function on points; `x` itself is what the arrays are known by.
  values(x) {
    const arrays = this.arrays(x), { value } = this.activation
    this.layers.forEach((layer, l) => {
      forward(layer, arrays[l], x.length)
      if (l + 1 < this.layers.length) activate(value, arrays[l].z, arrays[l + 1].h)
    })
    return arrays[arrays.length - 1].z
  }

  // After `values`: the derivatives of the outputs times `factors` by the pre-activations of all layers.
  sensitivities(x, factors) {
    const arrays = this.arrays(x), { slope } = this.activation
    arrays[arrays.length - 1].s.set(factors)
    for (let l = this.layers.length - 1; l > 0; l--) back(this.layers[l], arrays[l], arrays[l - 1], slope, x.length)
    return arrays
  }

  // One step of gradient descent.
  step(x, y, learningRate) {
    const f = this.values(x), arrays = this.sensitivities(x, f.map((value, i) => -learningRate * (value - y[i]) / y.length))
    this.layers.forEach((layer, l) => descend(layer, arrays[l], x.length))
  }

  // The empirical tangent kernel: over the layers, inner products of inputs times those of sensitivities.
  kernel(x1, x2) {
    const [rows, columns] = [x1, x2].map(x => {
      this.values(x)
      return this.sensitivities(x, new Float64Array(x.length).fill(1)).map(({ h, s }) => ({ h: h.slice(), s: s.slice() }))
    })
    const inner = (u, i, v, j) => {
      let sum = 0
      for (let a = i, b = j; a < u.length; a += x1.length, b += x2.length) sum += u[a] * v[b]
      return sum
    }
    return x1.map((_, i) => x2.map((_, j) => this.layers.reduce((sum, { wScale, bScale }, l) => sum
      + (wScale ** 2 * inner(rows[l].h, i, columns[l].h, j) + bScale ** 2) * inner(rows[l].s, i, columns[l].s, j), 0)))
  }
}

function forward({ weights, biases, fanIn, fanOut, wScale, bScale }, { h, z }, n) {
  for (let i = 0, at = 0; i < fanOut; i++) {
    const row = i * n, bias = bScale * biases[i]
    for (let p = 0; p < n; p++) z[row + p] = bias
    for (let j = 0; j < fanIn; j++) {
      const w = wScale * weights[at++], input = j * n
      for (let p = 0; p < n; p++) z[row + p] += w * h[input + p]
    }
  }
}

function activate(value, z, h) {
  for (let k = 0; k < z.length; k++) h[k] = value(z[k])
}

function back({ weights, fanIn, fanOut, wScale }, { s }, before, slope, n) {
  const found = before.s, z = before.z
  found.fill(0)
  for (let i = 0, at = 0; i < fanOut; i++) {
    for (let j = 0; j < fanIn; j++) {
      const w = wScale * weights[at++]
      for (let p = 0; p < n; p++) found[j * n + p] += w * s[i * n + p]
    }
  }
  for (let k = 0; k < found.length; k++) found[k] *= slope(z[k])
}

function descend({ weights, biases, fanIn, fanOut, wScale, bScale }, { h, s }, n) {
  for (let i = 0, at = 0; i < fanOut; i++) {
    const row = i * n
    for (let j = 0; j < fanIn; j++) {
      const input = j * n
      let sum = 0
      for (let p = 0; p < n; p++) sum += s[row + p] * h[input + p]
      weights[at++] += wScale * sum
    }
    let sum = 0
    for (let p = 0; p < n; p++) sum += s[row + p]
    biases[i] += bScale * sum
  }
}

// Some networks of consecutive seeds and their functions on training points and on a grid. Linearized, they keep the
// kernel of their start, and their functions move as that says.
class Ensemble {
  constructor(x, y, grid, { members = 10, seed = 0, linearized = false, ...options } = {}) {
    const network = { width: 256, ...DEFAULTS, ...options }
    Object.assign(this, { x, y, grid, linearized, steps: 0 })
    this.networks = Array.from({ length: members }, (_, i) => new Network(x[0].length, network, normals(hashed(seed, i))))
    if (linearized) this.restart()
  }

  // Linearize around where the networks are.
  restart() {
    this.states = this.networks.map(network => ({
      train: network.values(this.x).slice(), grid: network.values(this.grid).slice(),
      kTrain: network.kernel(this.x, this.x), kGrid: network.kernel(this.grid, this.x)
    }))
  }

  // Steps until the time is over, in milliseconds, or their number is reached; returns how many there were.
  advance(learningRate, count, milliseconds = Infinity) {
    const start = performance.now()
    let done = 0
    while (done < count && (done === 0 || performance.now() - start < milliseconds)) {
      if (this.linearized) this.states.forEach(state => this.slide(state, learningRate))
      else this.networks.forEach(network => network.step(this.x, this.y, learningRate))
      done++
    }
    this.steps += done
    return done
  }

  slide({ train, grid, kTrain, kGrid }, learningRate) {
    const push = train.map((f, i) => -learningRate * (f - this.y[i]) / this.y.length)
    kGrid.forEach((row, i) => { grid[i] += dot(row, push) })
    kTrain.map(row => dot(row, push)).forEach((change, i) => { train[i] += change })
  }

  // The function of a member on the grid, and those of all on the training points.
  memberOnGrid(i) {
    return this.linearized ? this.states[i].grid : this.networks[i].values(this.grid)
  }

  get onTrain() {
    return this.linearized ? this.states.map(state => state.train) : this.networks.map(network => network.values(this.x))
  }
}

// A seed for a member that shares no stream with those of other seeds.
const hashed = (seed, member) => Math.imul(seed + 1, 0x85ebca6b) ^ Math.imul(member + 1, 0xc2b2ae35)
