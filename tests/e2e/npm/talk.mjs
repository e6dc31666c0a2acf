// Has the npm client of Ollama do its operations at one address, and prints the answers as one JSON object.
// Usage: node talk.mjs URL CAST, where CAST is JSON: {"chat", "tools", "thinker", "embedder", "options"}.

import { Ollama } from "ollama";

const [url, given] = process.argv.slice(2);
const cast = JSON.parse(given);
const client = new Ollama({ host: url });
const messages = [{ role: "user", content: "What is the weather in Paris?" }];
const place = { type: "object", properties: { city: { type: "string" } }, required: ["city"] };
const tools = [{ type: "function", function: { name: "get_weather", description: "Tells it.", parameters: place } }];

async function gathered(stream) {
  const parts = [];
  for await (const part of stream) parts.push(part);
  return parts;
}

async function failed(asking) {
  try {
    await asking;
  } catch (error) {
    return { failure: error.name, status: error.status_code, message: error.message.split(";")[0] };
  }
  return "no failure";
}

async function left() {
  const options = { ...cast.options, num_predict: 4000 };
  const stream = await client.chat({ model: cast.chat, messages, options, stream: true });
  let count = 0;
  try {
    for await (const _ of stream) if (++count === 3) stream.abort();
  } catch (error) {
    return { failure: error.name };
  }
  return "ended";
}

const operations = {
  list: () => client.list(),
  show: () => client.show({ model: cast.chat }),
  chat: () => client.chat({ model: cast.chat, messages, options: cast.options }),
  stream: async () => gathered(await client.chat({ model: cast.chat, messages, options: cast.options, stream: true })),
  tools: () => client.chat({ model: cast.tools, messages, tools }),
  think: async () => gathered(await client.chat({ model: cast.thinker, messages, think: true, stream: true })),
  generate: () => client.generate({ model: cast.chat, prompt: "Hello", options: cast.options }),
  embed: () => client.embed({ model: cast.embedder, input: ["one", "two"] }),
  unknown: () => failed(client.chat({ model: "nosuch:1b", messages })),
  unknown_stream: () => failed(client.generate({ model: "nosuch:1b", prompt: "Hello", stream: true })),
};

const wanted = process.argv[4] === "leave" ? { left } : operations;
const answers = {};
for (const [name, ask] of Object.entries(wanted)) answers[name] = await ask();
console.log(JSON.stringify(answers));
