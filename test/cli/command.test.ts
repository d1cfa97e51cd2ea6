import { mkdtemp, readFile, rm, writeFile } from 'node:fs/promises';
import { tmpdir } from 'node:os';
import { join } from 'node:path';
import { afterAll, beforeAll, describe, expect, it } from 'vitest';
import { cudaSupport } from '../../src/runtime/cuda-addon.ts';
import { nativeSupport } from '../../src/runtime/native-addon.ts';
import { perigee } from './run-command.ts';

const native = nativeSupport();
const cuda = cudaSupport();

let folder: string;
beforeAll(async () => {
  folder = await mkdtemp(join(tmpdir(), 'perigee-cli-'));
  // Looks like a Hugging Face checkpoint from outside.
  await writeFile(join(folder, 'config.json'), '{}');
  await writeFile(join(folder, 'model.safetensors'), '');
});
afterAll(() => rm(folder, { recursive: true }));

describe('exit codes', () => {
  it.each([
    ['an unknown command', ['fly']],
    ['an unknown option', ['doctor', '--fly']],
    ['a bad number', ['doctor', '--threads', 'two']],
    ['a backend that is not there', ['doctor', '--backend', 'tpu']],
    ['optimize rules that are not there', ['doctor', '--optimize-config-path', 'nowhere.yaml']],
    ['optimize rules that are none', ['doctor', '--optimize-config-path', 'package.json']],
    ['a kernel set that is not there', ['doctor', '--isa', 'mmx']],
    ['a missing model', ['inspect', '/nowhere/model.gguf']],
    ['a file that is no model', ['inspect', 'package.json']],
    ['a checkpoint that cannot be converted', ['inspect', 'CHECKPOINT']],
  ])('are 2 for %s, with a sentence', async (_, args) => {
    const result = await perigee(args.map((each) => (each === 'CHECKPOINT' ? folder : each)));
    expect(result).toMatchObject({ code: 2, stdout: '' });
    expect(result.stderr).toMatch(/\w+ \w+/);
    expect(result.stderr).not.toMatch(/^\s+at /m);
  });

  it.for(['cuda', 'hybrid'])(
    'are 2 for --backend %s where there is no GPU, with the reason',
    async (backend, { skip }) => {
      if (cuda.available) skip('this machine has a GPU');
      for (const command of [['doctor'], ['run', 'Hello'], ['bench', '--shape', 'tiny']]) {
        const { code, stdout, stderr } = await perigee([...command, '--backend', backend]);
        expect([code, stdout]).toEqual([2, '']);
        expect(stderr).toContain(cuda.available ? '' : cuda.why);
      }
    },
  );

  it('are 0 for --help and --version', async () => {
    expect((await perigee(['--help'])).code).toBe(0);
    expect(await perigee(['--version'])).toMatchObject({ code: 0, stdout: expect.stringMatching(/^\d+\.\d+\.\d+\n$/) });
  });
});

describe('a Hugging Face checkpoint as MODEL', () => {
  it('is converted once and kept', async () => {
    const env = { XDG_CACHE_HOME: folder };
    const inspect = () => perigee(['inspect', 'test/fixtures/moonlight', '--json'], { env });
    const first = await inspect();
    expect(first.code).toBe(0);
    expect(first.stderr).toContain('converting it once');
    const second = await inspect();
    expect(second.stdout).toBe(first.stdout);
    expect(second.stderr).not.toContain('converting');
  });
});

describe('options', () => {
  const origins = async (args: readonly string[], env: Record<string, string> = {}) => {
    const { stdout } = await perigee(['doctor', '--print-config', '--json', ...args], { env });
    return JSON.parse(stdout).threads;
  };

  it('come from flags, then the environment, then the file, then defaults', async () => {
    const config = join(folder, 'config.yaml');
    await writeFile(config, 'threads: 5\nport: 1\n');
    const env = { PERIGEE_THREADS: '4' };
    expect(await origins(['--threads', '3', '--config', config], env)).toEqual({ value: 3, origin: 'flag' });
    expect(await origins(['--config', config], env)).toEqual({
      value: 4,
      origin: 'environment variable PERIGEE_THREADS',
    });
    expect(await origins(['--config', config])).toEqual({ value: 5, origin: 'configuration file' });
    expect(await origins([])).toEqual({ value: null, origin: 'default' });
  });

  it('of a file that no command knows are refused by name', async () => {
    const config = join(folder, 'typo.yaml');
    await writeFile(config, 'treads: 5\n');
    const result = await perigee(['doctor', '--config', config]);
    expect(result).toMatchObject({ code: 2, stderr: expect.stringContaining("'treads'") });
  });

  it('never print the key', async () => {
    const { stdout } = await perigee(['serve', '--print-config', '--api-key', 'secret']);
    expect(stdout).toMatch(/^api-key +\*\*\*/m);
  });
});

describe('--json', () => {
  it.each([
    ['doctor', ['doctor']],
    ['inspect', ['inspect']],
    ['fit', ['fit']],
    ['tokenize', ['tokenize', '--text', 'Hello']],
    ['run', ['run', 'Hello', '--max-tokens', '4']],
  ])('makes %s print one object and nothing else on stdout', async (_, args) => {
    const { code, stdout } = await perigee([...args, '--json']);
    expect(code).toBe(0);
    expect(stdout.trimEnd().split('\n')).toHaveLength(1);
    expect(JSON.parse(stdout)).toBeTypeOf('object');
  });

  it.for(['wasm', 'native'])('has the keys of bench that scripts rely on, with %s', async (backend, { skip }) => {
    if (backend === 'native' && !native.available) skip(native.why);
    const sizes = ['--shape', 'tiny', '--prefill', '8', '--decode', '2'];
    const { code, stdout } = await perigee(['bench', ...sizes, '--backend', backend, '--json']);
    expect(code).toBe(0);
    expect(JSON.parse(stdout)).toMatchObject({
      backend,
      isa: expect.any(String),
      threads: expect.any(Number),
      prefill: { tokens: 8, tokens_per_second: expect.any(Number) },
      decode: { tokens: 2, tokens_per_second: expect.any(Number), weight_gb_per_second: expect.any(Number) },
      machine: { read_gb_per_second: expect.any(Number), int8_gops: expect.any(Number) },
    });
  });
});

describe('doctor', () => {
  it('lists the kernels of both backends, what each lacks, and the choice', async () => {
    const { stdout } = await perigee(['doctor', '--json']);
    const { kernels, plan } = JSON.parse(stdout);
    const of = (backend: string) =>
      kernels.filter((each: { backend: string }) => each.backend === backend).map((each: { isa: string }) => each.isa);
    expect(of('native')).toEqual(['amx', 'avx512', 'avx2', 'neon', 'scalar']);
    expect(of('wasm')).toEqual(['relaxed', 'simd128', 'scalar']);
    const chosen = kernels.find(
      (each: { backend: string; isa: string }) => each.backend === plan.ranks && each.isa === plan.isa,
    );
    expect(chosen?.lacking ?? null).toBeNull();
    const onCpu = native.available && native.isas[0] !== 'scalar' ? 'native' : 'wasm';
    expect(plan.backend).toBe(cuda.available ? 'cuda' : onCpu);
    const text = (await perigee(['doctor'])).stdout;
    for (const reason of plan.reasons) expect(text).toContain(reason);
    expect(text).toMatch(/^wasm +relaxed +ready$/m);
  });
});

describe('run', () => {
  it('answers with Nano where no model is named', async () => {
    const { code, stdout } = await perigee(['run', 'What is 17 + 25?', '--temperature', '0']);
    expect(code).toBe(0);
    expect(stdout).toContain('42');
  });

  it('takes a first word that is a file for the model, and - for standard input', async () => {
    const { stdout } = await perigee(['run', 'models/nano.gguf', '-', '--temperature', '0'], {
      input: 'What is 17 + 25?',
    });
    expect(stdout).toContain('42');
  });
});

describe('score', () => {
  const score = async (tokens: unknown, args: readonly string[] = []) => {
    const input = join(folder, 'tokens.json');
    const out = join(folder, 'logits.f32');
    await writeFile(input, JSON.stringify(tokens));
    const result = await perigee(['score', '--tokens', input, '--out', out, '--json', ...args]);
    return { ...result, logits: result.code === 0 ? await readFile(out) : Buffer.alloc(0) };
  };

  it('writes the logits of every position, the same for any number of ranks', async () => {
    const one = await score([1, 2, 3, 4, 5], ['--threads', '1']);
    const { vocabulary, tokens } = JSON.parse(one.stdout);
    expect(one.logits.length).toBe(4 * tokens * vocabulary);
    expect((await score([1, 2, 3, 4, 5], ['--threads', '3'])).logits.equals(one.logits)).toBe(true);
  });

  it('writes the same on either backend', async ({ skip }) => {
    if (!native.available) skip(native.why);
    const wasm = await score([1, 2, 3, 4, 5], ['--backend', 'wasm']);
    const same = await score([1, 2, 3, 4, 5], ['--backend', 'native']);
    expect(JSON.parse(wasm.stdout).backend).toBe('wasm');
    expect(JSON.parse(same.stdout).backend).toBe('native');
    expect(same.logits.equals(wasm.logits)).toBe(true);
  });

  it('runs each of several prompts alone', async () => {
    const together = await score([
      [7, 8, 9],
      [10, 11],
    ]);
    const apart = [await score([7, 8, 9]), await score([10, 11])];
    expect(together.logits.equals(Buffer.concat(apart.map(({ logits }) => logits)))).toBe(true);
  });

  it.each([
    ['no array', { a: 1 }],
    ['an empty prompt', [[1], []]],
    ['a token that does not exist', [999_999]],
    ['text', ['1']],
  ])('refuses %s', async (_, tokens) => {
    expect(await score(tokens)).toMatchObject({ code: 2, stdout: '' });
  });
});

describe('tokenize', () => {
  it('reads names of control tokens only when told to', async () => {
    const count = async (args: readonly string[]) => {
      return JSON.parse((await perigee(['tokenize', '--text', '<|im_end|>', ...args])).stdout).length;
    };
    expect(await count(['--specials'])).toBe(1);
    expect(await count([])).toBeGreaterThan(1);
  });
});
