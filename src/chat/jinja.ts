import * as jinja from '@huggingface/jinja';
import { perigeeError } from '../errors.ts';
import { ExactNumber, type JsonTree } from './json.ts';

/**
 * A chat template comes with the model file, so it is somebody else's program. It can reach nothing but its variables (members
 * are looked up in maps, never on JavaScript objects), and it runs under three limits: evaluations, characters and elements
 * made, and time. They are checked at every evaluation of the interpreter, so a template that loops or grows ends with an
 * error here. A worker thread would not do: one large allocation in it aborts the whole process, whatever its memory cap.
 */
const limits = {
  /** A conversation of 10,000 messages takes about 400,000 evaluations. */
  evaluations: 3_000_000,
  /** Characters a rendering may make, before what its input adds; an element of a list counts as `elementCost`. */
  made: 16_000_000,
  madePerInputCharacter: 64,
  elementCost: 64,
  /** Most characters of one text, before what its input adds: a filter may make a list of a text in a single evaluation. */
  text: 4_000_000,
  textPerInputCharacter: 4,
  range: 10_000,
  milliseconds: 2_000,
  /** The largest published templates have about 20,000 characters. */
  templateCharacters: 1_000_000,
};

// The package's declarations do not resolve under Node's module rules, so what is used of it is declared here.
interface RuntimeValue {
  readonly value: unknown;
}
interface Statement {
  readonly type: string;
}
interface Environment {
  set(name: string, value: unknown): RuntimeValue;
  setVariable(name: string, value: RuntimeValue): RuntimeValue;
}
interface Interpreter {
  run(program: Statement): RuntimeValue;
  evaluate(statement: Statement | undefined, environment: Environment): RuntimeValue;
}
const { Environment, Interpreter, parse, tokenize } = jinja as unknown as {
  Environment: new () => Environment;
  Interpreter: new (environment: Environment) => Interpreter;
  tokenize(source: string, options: { lstrip_blocks: boolean; trim_blocks: boolean }): unknown;
  parse(tokens: unknown): Statement;
};

/** What the template itself refuses, by raise_exception. */
class Refusal extends Error {}
class LimitReached extends Error {}

/** Nodes that hand out an existing value; all others make a new one. */
const reads = new Set(['Identifier', 'MemberExpression', 'StringLiteral', 'IntegerLiteral', 'FloatLiteral', 'Set']);

class BoundedInterpreter extends Interpreter {
  #evaluations = limits.evaluations;
  #made: number;
  readonly #longestText: number;
  readonly #deadline = performance.now() + limits.milliseconds;

  constructor(environment: Environment, inputCharacters: number) {
    super(environment);
    this.#made = limits.made + limits.madePerInputCharacter * inputCharacters;
    this.#longestText = limits.text + limits.textPerInputCharacter * inputCharacters;
  }

  override evaluate(statement: Statement | undefined, environment: Environment): RuntimeValue {
    if (--this.#evaluations < 0) throw new LimitReached(`more than ${limits.evaluations} evaluations`);
    // Every 4th: reading the clock costs as much as a small evaluation, and the sizes below bound what a large one does.
    if ((this.#evaluations & 3) === 0 && performance.now() > this.#deadline) {
      throw new LimitReached(`more than ${limits.milliseconds} ms`);
    }
    const value = super.evaluate(statement, environment);
    if (statement !== undefined && !reads.has(statement.type)) this.#charge(value.value);
    return value;
  }

  #charge(value: unknown): void {
    if (typeof value === 'string') {
      this.#made -= value.length;
      if (value.length > this.#longestText) this.#made = -1;
    } else if (Array.isArray(value)) this.#made -= value.length * limits.elementCost;
    if (this.#made < 0) throw new LimitReached('more text than its input explains');
  }
}

export type CompiledTemplate = (variables: Readonly<Record<string, JsonTree>>) => string;

/** Parses a template with Hugging Face's settings (trim_blocks, lstrip_blocks). Throws TEMPLATE_INVALID. */
export function compileTemplate(source: string): CompiledTemplate {
  if (source.length > limits.templateCharacters) {
    throw perigeeError('TEMPLATE_INVALID', { why: `it has ${source.length} characters` });
  }
  let program: Statement;
  try {
    program = parse(tokenize(source, { lstrip_blocks: true, trim_blocks: true }));
  } catch (cause) {
    throw perigeeError('TEMPLATE_INVALID', { why: messageOf(cause) }, { cause });
  }
  return (variables) => {
    const environment = standardEnvironment();
    let inputCharacters = 0;
    for (const [name, tree] of Object.entries(variables)) {
      environment.setVariable(name, toRuntimeValue(tree));
      inputCharacters += characters(tree);
    }
    try {
      return String(new BoundedInterpreter(environment, inputCharacters).run(program).value);
    } catch (cause) {
      if (cause instanceof Refusal) throw perigeeError('TEMPLATE_REFUSED', { why: cause.message }, { cause });
      if (cause instanceof LimitReached) throw perigeeError('TEMPLATE_UNBOUNDED', { limit: cause.message }, { cause });
      throw perigeeError('TEMPLATE_FAILED', { why: messageOf(cause) }, { cause });
    }
  };
}

/** The variables Hugging Face gives every template. */
function standardEnvironment(): Environment {
  const environment = new Environment();
  environment.set('true', true);
  environment.set('True', true);
  environment.set('false', false);
  environment.set('False', false);
  environment.set('none', null);
  environment.set('None', null);
  environment.set('raise_exception', (message: unknown) => {
    throw new Refusal(String(message));
  });
  environment.set('range', range);
  environment.set('strftime_now', strftimeNow);
  return environment;
}

function range(first: number, last?: number, step = 1): number[] {
  const [start, stop] = last === undefined ? [0, first] : [first, last];
  const count = Math.max(0, Math.ceil((stop - start) / step));
  if (!(count <= limits.range)) throw new LimitReached(`a range of ${count} numbers`);
  return Array.from({ length: count }, (_, i) => start + i * step);
}

/** The date parts templates ask for ("Today is %Y-%m-%d"). */
function strftimeNow(format: string): string {
  const now = new Date();
  const two = (n: number) => String(n).padStart(2, '0');
  const name = (options: Intl.DateTimeFormatOptions) => new Intl.DateTimeFormat('en-US', options).format(now);
  const parts: Record<string, () => string> = {
    '%Y': () => String(now.getFullYear()),
    '%m': () => two(now.getMonth() + 1),
    '%d': () => two(now.getDate()),
    '%H': () => two(now.getHours()),
    '%M': () => two(now.getMinutes()),
    '%S': () => two(now.getSeconds()),
    '%B': () => name({ month: 'long' }),
    '%b': () => name({ month: 'short' }),
    '%A': () => name({ weekday: 'long' }),
    '%a': () => name({ weekday: 'short' }),
    '%%': () => '%',
  };
  return format.replace(/%./g, (code) => parts[code]?.() ?? code);
}

// The library exports no value classes; its own conversion gives one of each to take the constructors from. It is not used
// for whole trees, since it reorders keys that look like integers and prints 1.0 as 1.
type Construct<Value> = new (value: Value) => RuntimeValue;
const kinds = new Environment();
const ObjectValue = kinds.set('object', {}).constructor as Construct<Map<string, RuntimeValue>>;
const ArrayValue = kinds.set('array', []).constructor as Construct<RuntimeValue[]>;
const FloatValue = kinds.set('float', 0.5).constructor as Construct<number>;
const scalar = (value: unknown) => new Environment().set('value', value);

class ExactFloatValue extends FloatValue {
  override toString(): string {
    return String((this.value as ExactNumber).text);
  }
}

function toRuntimeValue(tree: JsonTree): RuntimeValue {
  if (Array.isArray(tree)) return new ArrayValue(tree.map(toRuntimeValue));
  if (tree instanceof Map) return new ObjectValue(new Map([...tree].map(([key, item]) => [key, toRuntimeValue(item)])));
  // JSON.stringify, which the library's tojson ends in, prints an ExactNumber by its own text.
  if (tree instanceof ExactNumber) return new ExactFloatValue(tree as unknown as number);
  return scalar(tree);
}

function characters(tree: JsonTree): number {
  if (typeof tree === 'string') return tree.length;
  if (Array.isArray(tree)) return tree.reduce<number>((sum, item) => sum + characters(item), limits.elementCost);
  if (tree instanceof Map)
    return [...tree].reduce((sum, [key, item]) => sum + key.length + characters(item), limits.elementCost);
  return 0;
}

function messageOf(cause: unknown): string {
  return cause instanceof Error ? cause.message : String(cause);
}
