/** The rules of the tree that a reader of CONTRIBUTING.md may rely on. */
import { execFileSync } from 'node:child_process';
import { existsSync, readFileSync } from 'node:fs';
import { dirname, join, relative, resolve } from 'node:path';
import { fileURLToPath } from 'node:url';
import { describe, expect, it } from 'vitest';

const root = fileURLToPath(new URL('..', import.meta.url));
/** Tracked files and those about to be. */
const files = execFileSync('git', ['ls-files', '--cached', '--others', '--exclude-standard'], {
  cwd: root,
  encoding: 'utf8',
})
  .split('\n')
  .filter((file) => file !== '' && existsSync(join(root, file)));
const read = (file: string) => readFileSync(join(root, file), 'utf8');
const source = files.filter((file) => /^(src|wasm|native)\/.*\.ts$/.test(file));

/** What each folder of src/ may import, besides itself and src/errors.ts. */
const below: Record<string, readonly string[]> = {
  gguf: [],
  sampling: ['gguf'],
  chat: ['tokenizer'],
  constrain: ['tokenizer', 'gguf', 'runtime'],
  tokenizer: ['gguf'],
  select: ['gguf'],
  model: ['gguf', 'select'],
  runtime: ['gguf', 'model', 'select', 'wasm'],
  wasm: ['gguf', 'model', 'runtime'],
  convert: ['gguf', 'model', 'tokenizer', 'runtime', 'wasm'],
  conform: ['runtime', 'model', 'sampling', 'select', 'gguf'],
  scheduler: ['runtime', 'sampling', 'model', 'constrain'],
  'engine-process': ['scheduler', 'constrain', 'runtime', 'sampling', 'model', 'gguf', 'select'],
  api: ['chat', 'tokenizer', 'scheduler', 'sampling', 'model', 'constrain'],
  server: ['api', 'chat', 'tokenizer', 'scheduler', 'engine-process', 'model', 'sampling', 'select'],
};

/** The folder of a source file, as the table above names it; null for src/errors.ts and other files of src/ itself. */
function layer(file: string): string | null {
  const [top, second, third] = file.split('/');
  if (top !== 'src') return top ?? null;
  return third === undefined ? null : (second ?? null);
}

function imports(file: string): string[] {
  return [...read(file).matchAll(/(?:from|import)\s*\(?\s*'(\.[^']+)'/g)].map(([, path]) =>
    relative(root, resolve(root, dirname(file), path ?? '')),
  );
}

describe('imports', () => {
  it('point only downward', () => {
    const upward = source.flatMap((file) => {
      const from = layer(file);
      if (from === null || from === 'cli') return [];
      return imports(file)
        .filter((target) => {
          const to = layer(target);
          return to !== null && to !== from && !below[from]?.includes(to);
        })
        .map((target) => `${file} -> ${target}`);
    });
    expect(upward).toEqual([]);
  });

  it('have no cycles between folders', () => {
    const seen = new Set<string>();
    const visit = (name: string, path: readonly string[]) => {
      expect(path, `cycle: ${[...path, name].join(' -> ')}`).not.toContain(name);
      if (seen.has(name)) return;
      for (const next of below[name] ?? []) {
        // wasm/ and src/runtime are the two ends of one seam: the worker and the thread that starts it.
        if (!(name === 'wasm' && next === 'runtime')) visit(next, [...path, name]);
      }
      seen.add(name);
    };
    for (const name of Object.keys(below)) visit(name, []);
  });

  it('exist for every folder of src/ in the table', () => {
    const folders = new Set(source.map(layer));
    expect([...folders].filter((name) => name !== null && name !== 'cli' && !(name in below))).toEqual([]);
  });

  it('of the engine stay inside it', () => {
    const outside = files
      .filter((file) => /^engine\/.*\.(cc|h|inl)$/.test(file))
      .flatMap((file) =>
        [...read(file).matchAll(/#include "([^"]+)"/g)]
          .filter(([, path]) =>
            relative(join(root, 'engine'), resolve(root, dirname(file), path ?? '')).startsWith('..'),
          )
          .map(([, path]) => `${file} -> ${path}`),
      );
    expect(outside).toEqual([]);
  });
});

describe('size and documentation', () => {
  it('keeps every source file within 500 lines', () => {
    const long = files
      .filter((file) => /\.(ts|cc|h|inl|py|sh)$/.test(file) && !file.startsWith('test/fixtures/'))
      .map((file) => ({ file, lines: read(file).split('\n').length }))
      .filter(({ lines }) => lines > 500);
    expect(long).toEqual([]);
  });

  it('has a README in every folder of code', () => {
    const folders = new Set(
      files.filter((file) => /^(engine|wasm|native|src|models|scripts)\//.test(file)).map(dirname),
    );
    folders.delete('src');
    // A folder of a folder may be described by its parent's README.
    const described = (folder: string) =>
      existsSync(join(root, folder, 'README.md')) || existsSync(join(root, dirname(folder), 'README.md'));
    expect([...folders].filter((folder) => !described(folder))).toEqual([]);
  });
});

describe('tracked files', () => {
  it('name no path of one machine and no registry host', () => {
    const private_ = /\/(work|home|root|Users)\/[a-z]|"resolved":/;
    const texts = files.filter(
      (file) =>
        /\.(ts|cc|h|json|md|sh|py|yaml|yml)$|Makefile$|\.ci\/run$/.test(file) && file !== 'test/architecture.test.ts',
    );
    expect(texts.filter((file) => private_.test(read(file)))).toEqual([]);
  });
});

describe('the door between TypeScript and the engine', () => {
  it('has in wasm/*.cc every name that wasm/*.ts calls', () => {
    const bindings = files
      .filter((file) => /^wasm\/.*\.cc$/.test(file))
      .map(read)
      .join('\n');
    const exported = new Set([...bindings.matchAll(/(?:export_name\("|EXPORT\()(\w+)/g)].map(([, name]) => name));
    expect(exported.size).toBeGreaterThan(0);
    const called = files
      .filter((file) => /^wasm\/.*\.ts$/.test(file))
      .flatMap((file) => [...read(file).matchAll(/\bexports\.(?!__)(\w+)\s*\(/g)].map(([, name]) => ({ file, name })));
    expect(called.filter(({ name }) => name !== undefined && !exported.has(name) && name !== '_initialize')).toEqual(
      [],
    );
  });
});
